"""What a data file is, by its first bytes: text that is read, or something else, which is named with its cure."""

from __future__ import annotations

import codecs
import gzip
import io
import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple, TextIO, cast

from pal_dist.core.console import printable
from pal_dist.core.errors import UserError

LOOKED_AT = 4096
"""Bytes from the beginning of a file."""

GZIP = b"\x1f\x8b"

BYTE_ORDER_MARKS = (  # those of UTF-32 first: its little-endian one begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

PANDAS = (
    "python -c \"import pandas; pandas.{reader}('{{name}}').to_json('{{stem}}.jsonl', orient='records', lines=True)\""
)


class Foreign(NamedTuple):
    """A kind of file that is not read."""

    begins: bytes
    what: str
    cure: str
    """With {name} and {stem} of the file."""


FOREIGN = (
    Foreign(b"PAR1\x15", "Parquet", PANDAS.format(reader="read_parquet")),  # what follows is a Thrift header
    Foreign(b"ARROW1\0", "Arrow (Feather)", PANDAS.format(reader="read_feather")),
    Foreign(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Excel workbook (xls)", PANDAS.format(reader="read_excel")),
    Foreign(b"version https://git-lfs", "a pointer of Git LFS, not the file itself", "git lfs pull"),
    Foreign(b"BZh91AY&SY", "packed by bzip2", "bunzip2 {name}"),
    Foreign(b"\xfd7zXZ\0", "packed by xz", "unxz {name}"),
    Foreign(b"\x28\xb5\x2f\xfd", "packed by zstd", "unzstd {name}"),
    Foreign(b"7z\xbc\xaf\x27\x1c", "a 7z archive", "7z x {name}"),
    Foreign(b"SQLite format 3\0", "an SQLite database", "sqlite3 -header -csv {name} 'SELECT * FROM ...' > {stem}.csv"),
    Foreign(b"\x89HDF\r\n", "HDF5", PANDAS.format(reader="read_hdf")),
    Foreign(b"%PDF-", "a PDF document", "export the table it shows as csv"),
)
ZIP = Foreign(b"PK\x03\x04", "a zip archive", "unzip {name}, and name the file within it")
WORKBOOK = Foreign(b"PK\x03\x04", "an Excel workbook (xlsx)", PANDAS.format(reader="read_excel"))
TAR = Foreign(b"", "a tar archive", "tar xf {name}, and name the file within it")
WEB_PAGE = Foreign(b"", "a web page, as a download gives that needs a log-in", "fetch the file itself again")
BINARY = Foreign(b"", "binary: it has NUL bytes, which text has not", "export it as csv or jsonl, in UTF-8")


@dataclass(frozen=True)
class FileKind:
    """How the bytes of a file become text."""

    encoding: str
    """Python's name of it; a byte order mark is no part of the text."""
    packed: bool
    """By gzip."""

    @property
    def told(self) -> list[str]:
        """What is not as usual, in words."""
        marked = f"in {self.encoding.upper()}, as its byte order mark says"
        return [marked] * (self.encoding != "utf-8-sig") + ["unpacked from gzip"] * self.packed

    def open_bytes(self, path: Path) -> IO[bytes]:
        return cast(IO[bytes], gzip.open(path, "rb")) if self.packed else open(path, "rb")

    def open_text(self, path: Path) -> TextIO:
        """Line ends as they are, for a csv field may hold one."""
        return io.TextIOWrapper(cast(io.BufferedReader, self.open_bytes(path)), encoding=self.encoding, newline="")


def kind_of(path: Path) -> FileKind:
    """Raises UserError where the file is no text, with what it is and what makes text of it."""
    if not os.access(path, os.R_OK):
        raise UserError(f"{path}: may not be read by you; ask its owner, or chmod +r")
    with open(path, "rb") as file:
        packed = file.read(2) == GZIP
    kind = FileKind("utf-8-sig", packed)
    with explain_unreadable(path, kind), kind.open_bytes(path) as file:
        head = file.read(LOOKED_AT)
    foreign = _foreign(head, path, packed)
    if foreign is not None:
        cure = foreign.cure.format(name=printable(path.name), stem=printable(path.stem))
        raise UserError(f"{path}: expected text (csv, tsv or jsonl), found {foreign.what}. Cure: {cure}")
    for mark, encoding in BYTE_ORDER_MARKS:
        if head.startswith(mark):
            return FileKind(encoding, packed)
    return kind


def _foreign(head: bytes, path: Path, packed: bool) -> Foreign | None:
    if head.startswith(ZIP.begins):
        return ZIP if packed else _zip_or_workbook(path)
    if head[257:262] == b"ustar":
        return TAR
    if head[:256].lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return WEB_PAGE
    for foreign in FOREIGN:
        if head.startswith(foreign.begins):
            return foreign
    marked = any(head.startswith(mark) for mark, _ in BYTE_ORDER_MARKS)
    return None if marked else _unmarked_or_binary(head)


def _zip_or_workbook(path: Path) -> Foreign:
    try:
        with zipfile.ZipFile(path) as archive:
            return WORKBOOK if any(name.startswith("xl/") for name in archive.namelist()) else ZIP
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError):
        return ZIP


def _unmarked_or_binary(head: bytes) -> Foreign | None:
    """Text in another Unicode encoding has NUL bytes at every second or fourth place."""
    if not head or head.count(0) < len(head) / 10:
        return None
    places = "".join("0" if head[place::4].count(0) > len(head) / 8 else "x" for place in range(4))
    names = {"x000": "UTF-32LE", "000x": "UTF-32BE", "x0x0": "UTF-16LE", "0x0x": "UTF-16BE"}
    name = names.get(places)
    if name is None:
        return BINARY
    cure = f"iconv -f {name} -t UTF-8 {{name}} > new && mv new {{name}}"
    return Foreign(b"", f"what looks like {name} without a byte order mark", cure)


@contextmanager
def explain_unreadable(path: Path, kind: FileKind) -> Iterator[None]:
    """Turn what a damaged file makes Python say into an error a person can act on."""
    try:
        try:
            yield
        except UnicodeDecodeError as error:
            raise UserError(_wrong_encoding(path, kind, error)) from None  # reads on, and may meet what is cut
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: a damaged or cut gzip file ({error}); copy or fetch it again") from None


def _wrong_encoding(path: Path, kind: FileKind, error: UnicodeDecodeError) -> str:
    if kind.encoding != "utf-8-sig":
        name = kind.encoding.upper()
        return (
            f"{path}: begins with the byte order mark of {name}, and then is not {name} ({error.reason}); fetch it "
            f"again, or save it as UTF-8"
        )
    with kind.open_bytes(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as wrong:  # noqa: PERF203
                byte = line[wrong.start : wrong.start + 1].hex()
                unpack = "Unpack and convert" if kind.packed else "Convert"
                return (
                    f"{path}, line {number}: expected UTF-8, found byte 0x{byte} at column {wrong.start + 1}. {unpack} "
                    f"the file, for example: iconv -f WINDOWS-1252 -t UTF-8 {path.name} > new && mv new {path.name}"
                )
    return f"{path}: not UTF-8"  # UTF-8 may be whole line by line and the decoder still disagree: do not guess where
