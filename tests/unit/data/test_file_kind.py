"""What is no text is named by its first bytes; what is text in another guise is read."""

from __future__ import annotations

import codecs
import gzip
import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from pal_dist.core.errors import UserError
from pal_dist.data.readers import Example, read_rows
from pal_dist.tasks.objectives import Classes
from pal_dist.tasks.registry import Task

TASK = Task("mine", {"train": "rows.csv"}, text_a="text", label="label", objective=Classes(2), metric="accuracy")
TABLE = "text,label\ncafé “one”,1\n電影,0\n"
ROWS = [Example(2, "", "café “one”", None, 1.0), Example(3, "", "電影", None, 0.0)]


def read(path: Path) -> list[object]:
    return list(read_rows(path, TASK, labelled=True, max_characters=1000))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "rows.csv"


def zipped(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, TABLE)
    return buffer.getvalue()


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("rows.csv"))
    return buffer.getvalue()


GUISES = {
    "UTF-8 with its mark": TABLE.encode("utf-8-sig"),
    "UTF-16, little end first": codecs.BOM_UTF16_LE + TABLE.encode("utf-16-le"),
    "UTF-16, big end first": codecs.BOM_UTF16_BE + TABLE.encode("utf-16-be"),
    "UTF-32, little end first": codecs.BOM_UTF32_LE + TABLE.encode("utf-32-le"),
    "UTF-32, big end first": codecs.BOM_UTF32_BE + TABLE.encode("utf-32-be"),
    "gzip": gzip.compress(TABLE.encode()),
    "gzip of UTF-16": gzip.compress(TABLE.encode("utf-16")),
}

FOREIGN = {
    "xlsx": (zipped("[Content_Types].xml", "xl/workbook.xml"), r"an Excel workbook .*read_excel\('rows\.csv'\)"),
    "zip": (zipped("rows.csv"), "a zip archive.*unzip rows.csv"),
    "zip, cut": (zipped("rows.csv")[:40], "a zip archive"),
    "Parquet": (b"PAR1\x15\x04\x15\x10" + bytes(40) + b"PAR1", "found Parquet.*read_parquet"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git LFS.*git lfs pull"),
    "bzip2": (b"BZh91AY&SYxxxx", "bunzip2 rows.csv"),
    "xz": (b"\xfd7zXZ\0xxxx", "unxz rows.csv"),
    "zstd": (b"\x28\xb5\x2f\xfdxxxx", "unzstd rows.csv"),
    "tar": (tarred(), "a tar archive"),
    "tar.gz": (gzip.compress(tarred()), "a tar archive"),
    "web page": (b"\n<!DOCTYPE html><html>", "a web page"),
    "UTF-16 without its mark": (TABLE.encode("utf-16-le"), "iconv -f UTF-16LE -t UTF-8 rows.csv"),
    "UTF-16, big end first, without": ("text,label\nx,1\n".encode("utf-16-be"), "iconv -f UTF-16BE"),
    "UTF-32 without its mark": (TABLE.encode("utf-32-le"), "iconv -f UTF-32LE"),
    "binary": (bytes(range(64)) + bytes(64), "binary: it has NUL bytes"),
}

DAMAGED = {
    "gzip, cut": (gzip.compress(TABLE.encode() * 99)[:-20], "damaged or cut gzip"),
    "gzip, changed": (gzip.compress(TABLE.encode())[:-8] + bytes(8), "damaged or cut gzip"),
    "UTF-16, cut": (TABLE.encode("utf-16")[:-1], "byte order mark of UTF-16"),
    "latin-1 in gzip, cut": (gzip.compress("café".encode("latin-1") + b"x" * 10**6)[:-20], "cut gzip"),
    "latin-1 in gzip": (gzip.compress("text,label\ncafé,1\n".encode("latin-1")), r"line 2: expected UTF-8.*Unpack and"),
}


@pytest.mark.parametrize("guise", GUISES)
def test_text_in_every_guise_is_read(guise: str, file: Path) -> None:
    file.write_bytes(GUISES[guise])
    assert read(file) == ROWS


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_no_text_is_named_with_its_cure(kind: str, file: Path) -> None:
    content, says = FOREIGN[kind]
    file.write_bytes(content)
    with pytest.raises(UserError, match=says):
        read(file)


@pytest.mark.parametrize("kind", DAMAGED)
def test_damage_is_told(kind: str, file: Path) -> None:
    content, says = DAMAGED[kind]
    file.write_bytes(content)
    with pytest.raises(UserError, match=says):
        read(file)


def test_a_file_that_may_not_be_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text(TABLE)
    monkeypatch.setattr(os, "access", lambda *_: False)  # the tests may run as root, who may read all
    with pytest.raises(UserError, match="may not be read"):
        read(file)
