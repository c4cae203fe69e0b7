"""Writing so that a crash, a full disk or a second reader never meets half a file.

Everything that must be whole is written here: into a draft beside its place, onto the disk, then renamed. JSON is
strict: what is not a number is null, which every parser reads.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pal_dist.core.errors import UserError

ABANDONED_AFTER = 24 * 3600
"""Seconds without a change after which a draft is that of a process that was killed."""


def draft_of(path: Path, writer: object = None) -> Path:
    """Where `writer`, by default this process, drafts what will stand at `path`: beside it, so a rename is enough."""
    return path.with_name(f".{path.name}.{writer or os.getpid()}.draft")


def _remove_abandoned_drafts(path: Path) -> None:
    """Free the room that killed writers of `path` hold."""
    for draft in path.parent.iterdir():
        if draft.name.endswith(".draft") and draft.name.removeprefix(".").startswith(f"{path.name}."):
            with suppress(OSError):  # its writer has just finished, or it is another person's
                contents = [draft, *draft.rglob("*")] if draft.is_dir() else [draft]
                if time.time() - max(entry.stat().st_mtime for entry in contents) > ABANDONED_AFTER:
                    _remove(draft)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: Path, *, needs: int = 0, draft: Path | None = None) -> Iterator[Path]:
    """A draft to fill; when the block ends well it is on disk and takes the place of `folder`, else it is gone.

    Args:
        needs: bytes that will be written, as far as that is known.
        draft: where the draft is, if several processes have to know that; by default a place of this process's own.

    Raises UserError where the disk is full, or has less than `needs` bytes left, with the old folder untouched.
    """
    draft = draft or draft_of(folder)
    _remove(draft)
    with explain_full_disk(folder):
        draft.mkdir(parents=True)
        _remove_abandoned_drafts(folder)
        try:
            check_room(draft, needs)
            yield draft
            mode = _usual_mode(draft)
            for path in list(draft.rglob("*")):
                if path.is_file():
                    path.chmod(mode)  # some writers make files that only their owner may read; a team shares runs
                sync(path)
            sync(draft)
            _replace_folder(draft, folder)
        finally:
            _remove(draft)


def _usual_mode(folder: Path) -> int:
    """The permissions that this process gives a new file there."""
    probe = folder / ".mode"
    probe.touch()
    mode = probe.stat().st_mode
    probe.unlink()
    return mode


def _replace_folder(draft: Path, folder: Path) -> None:
    """Let a finished draft take the place of `folder`, which a rename alone cannot do where it is not empty."""
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    if folder.exists():
        folder.rename(old)
    try:
        draft.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise
    sync(folder.parent)
    _remove(old)


@contextmanager
def atomic_file(path: Path, *, needs: int = 0, draft: Path | None = None) -> Iterator[Path]:
    """A draft to write; when the block ends well it is on disk and takes the place of `path`, else it is gone.

    Args and errors as those of `atomic_folder`.
    """
    draft = draft or draft_of(path)
    with explain_full_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned_drafts(path)
        try:
            check_room(path.parent, needs)
            yield draft
            sync(draft)
            draft.replace(path)
            sync(path.parent)
        finally:
            _remove(draft)


def check_room(folder: Path, needs: int) -> None:
    """Raises OSError, as a write would, where the disk of `folder` has less than `needs` bytes left."""
    free = shutil.disk_usage(folder).free
    if free < needs:
        raise OSError(errno.ENOSPC, f"{needs:,} bytes are needed and {free:,} are free")


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    with atomic_file(path) as draft:
        draft.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    write_text(path, to_json(content, indent=2) + "\n")


def to_json(content: Any, *, indent: int | None = None) -> str:
    """JSON that strict parsers read: NaN and the infinities, which JSON does not have, are null."""
    return json.dumps(_finite(content), indent=indent, allow_nan=False)


def _finite(content: Any) -> Any:
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    return content


@contextmanager
def explain_full_disk(path: Path) -> Iterator[None]:
    """Turn `no space left` from Python or from a library's own writer into an error a person can act on."""
    try:
        yield
    except Exception as error:
        code = error.errno if isinstance(error, OSError) else None
        if code in (errno.ENOSPC, errno.EDQUOT) or "os error 28" in str(error):
            detail = error.strerror if isinstance(error, OSError) else str(error)
            raise UserError(
                f"{path}: the disk is full ({detail}). What was saved before is whole; free some space or choose "
                f"another --output_dir, then start the same command again"
            ) from None
        if code in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise UserError(f"{path}: may not be written ({error.args[1]}); choose another folder") from None
        raise


def sync(path: Path) -> None:
    """Have the file or folder on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
