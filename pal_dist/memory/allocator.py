"""A replay of PyTorch's CUDA caching allocator: what it reserves from the device for a sequence of allocations.

Follows c10/cuda/CUDACachingAllocator.cpp: sizes in steps of 512 bytes; requests up to 1 MiB come from 2 MiB segments,
below 10 MiB from 20 MiB segments, larger ones from segments of their own in steps of 2 MiB; the best fit is split where
enough is left; neighbours that are free merge. With expandable segments a pool is one range of addresses that grows by
pages of 2 MiB (small) or 20 MiB (large).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass

from pal_dist.core.units import MEBIBYTE, round_up

SMALL_REQUEST, SMALL_SEGMENT = MEBIBYTE, 2 * MEBIBYTE
LARGE_REQUEST, LARGE_SEGMENT, LARGE_STEP = 10 * MEBIBYTE, 20 * MEBIBYTE, 2 * MEBIBYTE


@dataclass(eq=False)
class _Piece:
    address: int
    size: int
    small: bool
    before: _Piece | None = None
    after: _Piece | None = None
    free: bool = False


class CachingAllocator:
    """`allocate(key, bytes)` and `free(key)`; `reserved` and `peak_reserved` are in bytes."""

    def __init__(self, *, expandable: bool = False):
        self.expandable = expandable
        self.reserved = self.peak_reserved = 0
        self._used: dict[int, _Piece] = {}
        self._free: dict[bool, list[tuple[int, int, _Piece]]] = {True: [], False: []}  # per pool, by size and address
        self._tail: dict[bool, _Piece | None] = {True: None, False: None}
        self._end = {True: 0, False: 1 << 60}  # addresses of each pool rise

    def allocate(self, key: int, size: int) -> None:
        size = max(512, round_up(size, 512))
        small = size <= SMALL_REQUEST
        piece = self._best_fit(size, small) or self._new_segment(size, small)
        left = piece.size - size
        if left >= 512 if small or self.expandable else left > SMALL_REQUEST:
            rest = _Piece(piece.address + size, left, small, before=piece, after=piece.after)
            if piece.after:
                piece.after.before = rest
            if self._tail[small] is piece:
                self._tail[small] = rest
            piece.size, piece.after = size, rest
            self._put(rest)
        self._used[key] = piece

    def free(self, key: int) -> None:
        piece = self._used.pop(key)
        before, after = piece.before, piece.after
        if before is not None and before.free:
            self._take(before)
            before.size, before.after = before.size + piece.size, after
            if after:
                after.before = before
            if self._tail[piece.small] is piece:
                self._tail[piece.small] = before
            piece = before
        if after is not None and after.free:
            self._take(after)
            piece.size, piece.after = piece.size + after.size, after.after
            if after.after:
                after.after.before = piece
            if self._tail[piece.small] is after:
                self._tail[piece.small] = piece
        self._put(piece)

    def _best_fit(self, size: int, small: bool) -> _Piece | None:
        pool = self._free[small]
        place = bisect_left(pool, size, key=lambda entry: entry[0])
        if place == len(pool):
            return None
        piece = pool.pop(place)[2]
        piece.free = False
        return piece

    def _new_segment(self, size: int, small: bool) -> _Piece:
        if self.expandable:
            return self._grow(size, small)
        if small:
            segment = SMALL_SEGMENT
        elif size < LARGE_REQUEST:
            segment = LARGE_SEGMENT
        else:
            segment = round_up(size, LARGE_STEP)
        return _Piece(self._reserve(segment, small), segment, small)

    def _grow(self, size: int, small: bool) -> _Piece:
        """Map new pages behind the pool's last piece, which is taken along where it is free."""
        page = SMALL_SEGMENT if small else LARGE_SEGMENT
        tail = self._tail[small]
        free = tail.size if tail is not None and tail.free else 0
        pages = round_up(size - free, page)
        address = self._reserve(pages, small)
        if tail is not None and tail.free:
            self._take(tail)
            tail.size += pages
            return tail
        piece = _Piece(address, pages, small, before=tail)
        if tail is not None:
            tail.after = piece
        self._tail[small] = piece
        return piece

    def _reserve(self, size: int, small: bool) -> int:
        """Take so many bytes from the device; their address."""
        self.reserved += size
        self.peak_reserved = max(self.peak_reserved, self.reserved)
        self._end[small] += size
        return self._end[small] - size

    def _put(self, piece: _Piece) -> None:
        piece.free = True
        insort(self._free[piece.small], (piece.size, piece.address, piece), key=lambda entry: entry[:2])

    def _take(self, piece: _Piece) -> None:
        pool = self._free[piece.small]
        pool.pop(bisect_left(pool, (piece.size, piece.address), key=lambda entry: entry[:2]))
        piece.free = False


def reserved_bytes(events: Iterable[tuple[int, int]], *, expandable: bool = False) -> int:
    """Most bytes reserved while replaying (block, +bytes or -bytes)."""
    allocator = CachingAllocator(expandable=expandable)
    for block, size in events:
        if size > 0:
            allocator.allocate(block, size)
        elif size < 0:
            allocator.free(block)
    return allocator.peak_reserved
