"""Few sizes for many micro-batches, each of which a CUDA graph can be recorded for.

A graph replays kernels of fixed sizes. So each task's slice of a micro-batch is filled up to the next of few numbers of
tokens and rows; what is filled in are rows of [PAD] without a label, which add nothing to any loss or gradient.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pal_dist.core.units import ceil_div, round_up
from pal_dist.data.batch import BatchSize, SegmentSize

TOKENS_OF_STEP = 32
"""A slice's tokens are rounded up to a multiple of the power of two that is at most this part of them: 1.5 % is filled
in on average."""

LEAST_MULTIPLE = 16
"""Of tokens."""

ROWS_MULTIPLE = 4
"""Rows are rounded up to a multiple of this; one at least is filled in, which takes the tokens that are missing."""

MOST_TOKENS = 16384
"""Of a micro-batch with a fixed size. Larger ones keep a device busy without: on an H100 a replayed graph won below
about 12,000 tokens."""

SHORTEST_LONGEST = 32
"""Kernels are told the longest row's tokens: this, or a power of two above it."""


def size_for(lengths: list[NDArray[np.int32]], *, max_length: int) -> BatchSize:
    """The size for slices of rows of these lengths.

    Args:
        lengths: (rows,) of each slice.
        max_length: of a row.
    """
    longest = max((int(own.max()) for own in lengths if len(own)), default=1)
    bucket = min(max_length, max(SHORTEST_LONGEST, 1 << (longest - 1).bit_length()))
    return BatchSize(tuple(_segment_size(len(own), int(own.sum()), bucket) for own in lengths), bucket)


def _segment_size(rows: int, tokens: int, longest: int) -> SegmentSize:
    multiple = max(LEAST_MULTIPLE, 1 << max(0, (tokens // TOKENS_OF_STEP).bit_length() - 1))
    rows_in_all = round_up(rows + 1, ROWS_MULTIPLE)
    tokens_in_all = round_up(tokens + rows_in_all - rows, multiple)  # a row has one token at least
    missing = ceil_div(tokens_in_all - tokens, longest)
    return SegmentSize(tokens_in_all, max(rows_in_all, round_up(rows + missing, ROWS_MULTIPLE)))
