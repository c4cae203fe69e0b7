"""A file of features: a .npy file followed by a checksum of its rows, in its place once it is whole."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pal_dist.core.atomic_io import atomic_file, check_room
from pal_dist.core.errors import UserError
from pal_dist.core.units import gib

CHECKSUM_BYTES = 4
"""Of a CRC-32, little-endian, behind the array."""


class FeatureRows:
    """The rows of a file that is being written, a memory-mapped (examples, width) array; they come in order."""

    def __init__(self, array: NDArray[Any]):
        self.array, self.checksum, self.rows_written = array, 0, 0

    def append(self, rows: NDArray[Any]) -> None:
        """The next rows, (any number, width)."""
        content = np.ascontiguousarray(rows, dtype=self.array.dtype)
        self.checksum = zlib.crc32(content.data, self.checksum)
        self.array[self.rows_written : self.rows_written + len(content)] = content
        self.rows_written += len(content)


@contextmanager
def write_feature_file(path: Path, draft: Path, shape: tuple[int, int], dtype: str) -> Iterator[FeatureRows]:
    """Rows to append; when the block ends well all of them are on disk and take the place of `path`.

    Args:
        draft: where they are until then.
        shape: of the whole array, (examples, width).
        dtype: of the array, as NumPy names it.

    Raises UserError where the disk has too little room; nothing is left behind.
    """
    with atomic_file(path, draft=draft):
        rows = FeatureRows(_allocate(path, draft, shape, dtype))
        yield rows
        assert rows.rows_written == shape[0], "rows are missing"
        rows.array.flush()  # type: ignore[attr-defined]
        with open(draft, "ab") as file:
            file.write(rows.checksum.to_bytes(CHECKSUM_BYTES, "little"))


def _allocate(path: Path, draft: Path, shape: tuple[int, int], dtype: str) -> NDArray[Any]:
    """The draft as an array, with all the room on the disk that it will take."""
    size = shape[0] * shape[1] * np.dtype(dtype).itemsize
    try:
        check_room(path.parent, size)
        array: NDArray[Any] = np.lib.format.open_memmap(draft, mode="w+", dtype=np.dtype(dtype), shape=shape)
        with open(draft, "r+b") as file:  # else a disk that fills up meanwhile would kill the process that writes
            os.posix_fallocate(file.fileno(), 0, draft.stat().st_size)
    except OSError as error:
        raise UserError(
            f"{path.parent}: the features need {gib(size)}, and the disk has too little room ({error.strerror}): "
            f"free some, name another --cache_dir, or pass --features off (slower: the encoder then runs in every "
            f"step)"
        ) from None
    return array


def find_damage(path: Path, shape: tuple[int, int], dtype: str) -> str | None:
    """What is wrong with a file of features; None: nothing."""
    try:
        features = np.load(path, mmap_mode="r")
        if features.shape != shape or features.dtype != dtype:
            return f"it holds {features.dtype} of shape {features.shape}, expected {dtype} of {shape}"
        with open(path, "rb") as file:
            file.seek(features.offset + features.nbytes)
            written_checksum = file.read()
        if written_checksum != zlib.crc32(features.data).to_bytes(CHECKSUM_BYTES, "little"):
            return "its checksum does not match"
    except (OSError, ValueError, EOFError) as error:
        return str(error)
    return None
