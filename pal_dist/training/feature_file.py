"""A file of features: a .npy file followed by a checksum of its rows, in its place once it is whole."""

from __future__ import annotations

import os
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pal_dist.core.atomic_io import check_room, replace_file
from pal_dist.core.errors import UserError
from pal_dist.core.units import gib

OLD_DRAFT = 24 * 3600
"""Seconds after which a draft is that of a process that was killed."""

CHECKSUM_BYTES = 4
"""Of a CRC-32, little-endian, behind the array."""


class FeatureFileWriter:
    """Writes rows one stretch after the other into a draft; `finish` puts it in place."""

    def __init__(self, path: Path, draft: Path, shape: tuple[int, int], dtype: str):
        """`shape` and `dtype` are those of the whole array. Raises UserError where the disk has too little room."""
        path.parent.mkdir(parents=True, exist_ok=True)
        for other in path.parent.glob(f"{path.name}.*.draft"):
            if time.time() - other.stat().st_mtime > OLD_DRAFT:
                other.unlink(missing_ok=True)
        self.path, self.draft, self.checksum, self.next_row = path, draft, 0, 0
        size = shape[0] * shape[1] * np.dtype(dtype).itemsize
        try:
            check_room(path.parent, size)
            self.rows: NDArray[Any] = np.lib.format.open_memmap(draft, mode="w+", dtype=np.dtype(dtype), shape=shape)
            with open(draft, "r+b") as file:  # else a disk that fills up meanwhile would kill the process that writes
                os.posix_fallocate(file.fileno(), 0, draft.stat().st_size)
        except OSError as error:
            self.discard()
            raise UserError(
                f"{path.parent}: the features need {gib(size)}, and the disk has too little room ({error.strerror}): "
                f"free some, name another --cache_dir, or pass --features off (slower: the encoder then runs in every "
                f"step)"
            ) from None

    def write(self, rows: NDArray[Any]) -> None:
        """The next rows, (any number, width)."""
        content = np.ascontiguousarray(rows, dtype=self.rows.dtype)
        self.checksum = zlib.crc32(content.data, self.checksum)
        self.rows[self.next_row : self.next_row + len(content)] = content
        self.next_row += len(content)

    def finish(self) -> None:
        assert self.next_row == len(self.rows), "rows are missing"
        self.rows.flush()  # type: ignore[attr-defined]
        with open(self.draft, "ab") as file:
            file.write(self.checksum.to_bytes(CHECKSUM_BYTES, "little"))
        replace_file(self.draft, self.path)

    def discard(self) -> None:
        """Leave no draft behind; nothing where it is in its place already."""
        self.draft.unlink(missing_ok=True)


def find_damage(path: Path, shape: tuple[int, int], dtype: str) -> str | None:
    """What is wrong with a file of features; None: nothing."""
    try:
        features = np.load(path, mmap_mode="r")
        if features.shape != shape or features.dtype != dtype:
            return f"it holds {features.dtype} of shape {features.shape}, expected {dtype} of {shape}"
        with open(path, "rb") as file:
            file.seek(features.offset + features.nbytes)
            expected = file.read()
        if expected != zlib.crc32(features.data).to_bytes(CHECKSUM_BYTES, "little"):
            return "its checksum does not match"
    except (OSError, ValueError, EOFError) as error:
        return str(error)
    return None
