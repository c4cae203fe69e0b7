"""The replay of CUDA's caching allocator: its sizes, what it uses again, what fragments."""

from __future__ import annotations

from pal_dist.core.units import MEBIBYTE
from pal_dist.memory.allocator import CachingAllocator, reserved_bytes


def test_sizes() -> None:
    for size, segment in ((1, 2), (MEBIBYTE, 2), (MEBIBYTE + 1, 20), (10 * MEBIBYTE, 10), (10 * MEBIBYTE + 1, 12)):
        assert reserved_bytes([(0, size)]) == segment * MEBIBYTE


def test_freed_blocks_are_used_again_and_merge() -> None:
    allocator = CachingAllocator()
    for key in range(4):
        allocator.allocate(key, 5 * MEBIBYTE)
    assert allocator.reserved == 20 * MEBIBYTE
    allocator.free(1)
    allocator.free(2)
    allocator.allocate(9, 9 * MEBIBYTE)  # fits where the two were
    assert allocator.reserved == 20 * MEBIBYTE


def test_expandable_segments_do_not_fragment() -> None:
    events = [(0, 8 * MEBIBYTE), (1, 30 * MEBIBYTE), (0, -8 * MEBIBYTE), (1, -30 * MEBIBYTE), (2, 38 * MEBIBYTE)]
    assert reserved_bytes(events) > reserved_bytes(events, expandable=True) == 40 * MEBIBYTE


def test_among_equals_the_lowest_address_is_taken() -> None:
    """As CUDA's own does: a replay is the same each time."""
    allocator = CachingAllocator()
    for key in range(3):
        allocator.allocate(key, 12 * MEBIBYTE)
    lowest = allocator._used[0].address
    for key in (2, 0, 1):
        allocator.free(key)
    allocator.allocate(3, 11 * MEBIBYTE)
    assert allocator._used[3].address == lowest
