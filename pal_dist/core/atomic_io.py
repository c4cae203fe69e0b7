"""Writing so that a crash, a full disk or a second reader never meets half a file."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pal_dist.core.errors import UserError


@contextmanager
def atomic_folder(folder: Path, *, needs: int = 0) -> Iterator[Path]:
    """A draft to fill; when the block ends well it is on disk and takes the place of `folder`, else it is gone.

    Raises UserError where the disk is full, or has less than `needs` bytes left, with the old folder untouched.
    """
    draft = folder.with_name(f".{folder.name}.{os.getpid()}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    with explain_full_disk(folder):
        draft.mkdir(parents=True)
        try:
            free = shutil.disk_usage(draft).free
            if free < needs:
                raise OSError(errno.ENOSPC, f"{needs:,} bytes are needed and {free:,} are free")
            yield draft
            probe = draft / ".mode"
            probe.touch()
            mode = probe.stat().st_mode
            probe.unlink()
            for path in list(draft.rglob("*")):
                if path.is_file():
                    path.chmod(mode)  # some writers make files that only their owner may read; a team shares runs
                sync(path)
            replace_folder(draft, folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def replace_folder(draft: Path, folder: Path) -> None:
    """Let a finished draft take the place of `folder`."""
    sync(draft)
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    if folder.exists():
        folder.rename(old)
    draft.rename(folder)
    sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    with explain_full_disk(path):
        try:
            draft.write_text(text, encoding="utf-8")
            sync(draft)
            draft.rename(path)
        finally:
            draft.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=2) + "\n")


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
