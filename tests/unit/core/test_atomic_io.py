"""A file or folder is whole or not there; JSON is strict."""

from __future__ import annotations

import errno
import json
import math
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from pal_dist.core import atomic_io
from pal_dist.core.atomic_io import (
    ABANDONED_AFTER,
    atomic_file,
    atomic_folder,
    draft_of,
    explain_full_disk,
    to_json,
    write_json,
    write_text,
)
from pal_dist.core.errors import UserError


class CrashError(Exception):
    """Of the program, half-way."""


def crash_half_way(writing: AbstractContextManager[Path], write: Callable[[Path], object]) -> None:
    with writing as draft:
        write(draft)
        raise CrashError


def test_a_file_that_fails_half_way_is_as_before(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "before")
    with pytest.raises(CrashError):
        crash_half_way(atomic_file(path), lambda draft: draft.write_text("half of"))
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_who_reads_the_old_file_meanwhile_reads_it_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "before, and " * 9999)
    with path.open() as reader:
        start = reader.read(100)
        write_text(path, "after")
        assert start + reader.read() == "before, and " * 9999
    assert path.read_text() == "after"


def test_a_folder_that_fails_half_way_is_as_before(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    with atomic_folder(folder) as draft:
        (draft / "one").write_text("1")
    with pytest.raises(CrashError):
        crash_half_way(atomic_folder(folder), lambda draft: (draft / "two").write_text("2"))
    assert [path.name for path in folder.iterdir()] == ["one"]
    assert list(tmp_path.iterdir()) == [folder]


def test_a_folder_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    for name in ("one", "two"):
        with atomic_folder(folder) as draft:
            (draft / name).write_text(name)
            (draft / name).chmod(0o600)
    assert [path.name for path in folder.iterdir()] == ["two"]
    mask = os.umask(0)
    os.umask(mask)
    assert (folder / "two").stat().st_mode & 0o777 == 0o666 & ~mask, "as a new file has it: a team shares runs"


def test_the_old_folder_comes_back_where_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"
    with atomic_folder(folder) as draft:
        (draft / "one").write_text("1")
    rename = Path.rename

    def rename_but_drafts(path: Path, target: Path) -> Path:
        if path.suffix == ".draft":
            raise OSError(errno.EIO, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", rename_but_drafts)
    with pytest.raises(OSError, match="Input/output error"), atomic_folder(folder) as draft:
        (draft / "two").write_text("2")
    assert [path.name for path in folder.iterdir()] == ["one"]
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("make", [atomic_file, atomic_folder])
def test_several_processes_may_know_where_the_draft_is(make, tmp_path: Path) -> None:
    place, shared_draft = tmp_path / "new", draft_of(tmp_path / "new", "all")
    with make(place, draft=shared_draft) as draft:
        assert draft == shared_draft != draft_of(place)
        (draft / "file" if draft.is_dir() else draft).write_text("x")
    assert list(tmp_path.iterdir()) == [place]


@pytest.mark.parametrize("make", [atomic_file, atomic_folder])
def test_drafts_of_killed_processes_go_when_they_are_old(make, tmp_path: Path) -> None:
    """Only those of the same place, and only those that nothing has been written to for long."""
    place = tmp_path / "new"
    old_file, old_folder = draft_of(place, "killed"), draft_of(place, "killed too")
    fresh, filled, another = draft_of(place, "fresh"), draft_of(place, "filled"), draft_of(tmp_path / "newer", "killed")
    for draft in (old_file, fresh, another):
        draft.write_text("half of")
    for draft in (old_folder, filled):
        draft.mkdir()
        (draft / "file").write_text("half of")
    long_ago = time.time() - ABANDONED_AFTER - 9
    for path in (old_file, another, old_folder / "file", old_folder, filled):
        os.utime(path, (long_ago, long_ago))
    with make(place) as draft:
        (draft / "file" if draft.is_dir() else draft).write_text("x")
    assert set(tmp_path.iterdir()) == {place, fresh, filled, another}


@pytest.mark.parametrize("make", [atomic_file, atomic_folder])
def test_too_little_room_is_told_before_anything_is_written(make, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the disk is full"), make(tmp_path / "new", needs=1 << 60):
        raise AssertionError("nothing is written")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    write_text(tmp_path / "file.txt", "before")
    monkeypatch.setattr(atomic_io, "sync", no_space)
    with pytest.raises(UserError, match=r"the disk is full \(No space left on device\)"):
        write_text(tmp_path / "file.txt", "after")
    assert (tmp_path / "file.txt").read_text() == "before"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "here: the disk is full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "here: the disk is full"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "here: the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied"), "here: may not be written"),
        (OSError(errno.EROFS, "Read-only file system"), "here: may not be written"),
    ],
)
def test_what_a_person_can_mend_is_told_so(error: Exception, message: str) -> None:
    with pytest.raises(UserError, match=message), explain_full_disk(Path("here")):
        raise error


def test_what_is_a_bug_stays_as_it_is() -> None:
    with pytest.raises(CrashError), explain_full_disk(Path("here")):
        raise CrashError


def test_json_is_strict(tmp_path: Path) -> None:
    content = {"mean": math.nan, "list": [1.5, -math.inf], "tuple": (1, "NaN"), "deep": {"x": {"y": math.inf}}}
    write_json(tmp_path / "file.json", content)

    def refuse(name: str) -> float:
        raise AssertionError(f"{name} is no JSON")

    strict = json.loads((tmp_path / "file.json").read_text(), parse_constant=refuse)
    assert strict == {"mean": None, "list": [1.5, None], "tuple": [1, "NaN"], "deep": {"x": {"y": None}}}
    assert to_json({"a": 1}) == '{"a": 1}'
