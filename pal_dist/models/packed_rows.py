"""Where rows of tokens stand when they lie one behind the other, without padding.

Shapes: T tokens of R rows, D hidden.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Run(NamedTuple):
    """Neighbouring rows of one length."""

    first_row: int
    rows: int
    first_token: int
    length: int


class PackedRows:
    """The rows of a packed batch, or of one task's slice of it."""

    def __init__(self, starts: Tensor, lengths: NDArray[np.int32], longest: int | None = None):
        """
        Args:
            starts: int32 (R + 1) on the batch's device: where each row begins, and where the last one ends.
            lengths: (R,) on the host: tokens of each row.
            longest: tokens that no row has more of; None: those of the longest row.
        """
        self.starts, self.lengths = starts, lengths
        self.longest = (int(lengths.max()) if len(lengths) else 0) if longest is None else longest
        """What kernels are told; the longest row may have less."""

    @property
    def count(self) -> int:
        """Number of rows, R."""
        return len(self.lengths)

    @cached_property
    def tokens(self) -> int:
        return int(self.lengths.sum())

    def first(self, values_TD: Tensor) -> Tensor:
        """(R, D): the first token of each row."""
        return values_TD.index_select(0, self.starts[:-1])

    def asked(self, values_TD: Tensor, first_only: bool) -> Tensor:
        """(Q, D): the tokens whose results are wanted: the first of each row, or all."""
        return self.first(values_TD) if first_only else values_TD

    def mean(self, values_TD: Tensor) -> Tensor:
        """(R, D): the mean over each row's tokens."""
        if not self.count:
            return values_TD[:0]
        lengths = self.starts[1:] - self.starts[:-1]
        return torch.segment_reduce(values_TD, "mean", lengths=lengths, unsafe=True)

    @cached_property
    def single_starts(self) -> Tensor:
        """int32 (R + 1): 0 to R, the starts of rows of one token each."""
        return torch.arange(self.count + 1, dtype=torch.int32, device=self.starts.device)

    @cached_property
    def padded_places(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of the same rows, each padded to `longest` (L): (each place's token, (R L,), the first token where there is
        none; whether there is one, (R, L); each token's place, (T,)). All by the device, whatever the lengths."""
        along = torch.arange(self.longest, device=self.starts.device)
        is_token = along < (self.starts[1:] - self.starts[:-1])[:, None]
        tokens = (self.starts[:-1, None] + along).where(is_token, along.new_zeros(()))
        every = torch.arange(self.tokens, device=self.starts.device)
        row = torch.searchsorted(self.starts[1:], every.int(), right=True)
        return tokens.flatten(), is_token, row * self.longest + every - self.starts[row]

    @cached_property
    def runs(self) -> list[Run]:
        """Neighbouring rows of equal length, in order."""
        if not self.count:
            return []
        first_rows = np.flatnonzero(np.diff(self.lengths, prepend=-1))
        counts = np.diff(first_rows, append=self.count)
        lengths = self.lengths[first_rows]
        first_tokens = np.cumsum(counts * lengths) - counts * lengths
        return [Run(*map(int, values)) for values in zip(first_rows, counts, first_tokens, lengths, strict=True)]
