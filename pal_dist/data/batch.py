"""One micro-batch: rows of tokens one behind the other, without padding, task after task.

Everything but features lies in one buffer of int32, so that one copy brings a batch to the device.

Shapes: T tokens of R rows, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # text is prepared without PyTorch
    import torch
    from tokenizers import Tokenizer
    from torch import Tensor


class SegmentSize(NamedTuple):
    """Of one task's slice, what is filled in included."""

    tokens: int
    rows: int


class BatchSize(NamedTuple):
    """Of a micro-batch, all of whose kernels have the sizes that follow from it."""

    segments: tuple[SegmentSize, ...]
    longest: int
    """Tokens; no row has more."""

    @property
    def tokens(self) -> int:
        return sum(segment.tokens for segment in self.segments)


@dataclass(frozen=True)
class TextRows:
    """Rows of one task as a corpus has them."""

    tokens: NDArray[Any]
    """(T,), token ids, row after row."""
    lengths: NDArray[np.int32]
    """(R,), tokens of each row."""
    first_lengths: NDArray[np.int32]
    """(R,), tokens of each row up to the end of its first text."""
    labels: NDArray[np.float32]
    """(R,), NaN where there is none."""
    features: NDArray[Any] | None = None
    """(R, D), what the heads read, where it is known: there are no tokens then, and the lengths are those of the texts
    that the features stand for."""


class Segment(NamedTuple):
    """Where one task's rows stand in a packed batch."""

    task: str
    rows: slice
    tokens: slice
    filled_rows: int = 0
    """Rows at its end that are no examples (fixed_sizes.py)."""

    @property
    def row_count(self) -> int:
        count: int = self.rows.stop - self.rows.start
        return count

    @property
    def examples(self) -> int:
        return self.row_count - self.filled_rows


class Batch(NamedTuple):
    """One micro-batch, rows of its tasks packed; a task may have none."""

    segments: tuple[Segment, ...]
    lengths: NDArray[np.int32]
    """(R,), tokens of each row, on the host."""
    input_ids_T: Tensor
    """int32."""
    token_type_ids_T: Tensor
    """int32, 0 for [CLS] a [SEP], 1 for b [SEP]."""
    positions_T: Tensor
    """int32, each token's place in its row."""
    row_starts: Tensor
    """int32 (R + 1), where each row begins among the T tokens, and where the last one ends."""
    segment_row_starts: tuple[Tensor, ...]
    """int32 (its rows + 1) each, the same of each segment by itself, counted from its first token."""
    labels_R: Tensor
    """float32, NaN where the split has no labels."""
    factors_S: Tensor
    """float64, of the summed loss of each segment in the step's loss; 1 until the step sets it."""
    examples_S: Tensor
    """float64, examples of each segment."""
    pooled_RD: Tensor | None = None
    """What the heads read, where it is known already: there are no tokens then."""
    buffer: Tensor | None = None
    """int32, holds everything above but `pooled_RD`; None where each has memory of its own."""
    size: BatchSize | None = None
    """What it is filled up to; None: it is not."""

    @property
    def tokens(self) -> int:
        """Tokens of all rows; of cached features, those of the texts that they stand for."""
        return int(self.lengths.sum())

    @property
    def filled_tokens(self) -> int:
        """Tokens of the rows that are no examples."""
        ends = ((segment.rows.stop - segment.filled_rows, segment.rows.stop) for segment in self.segments)
        return sum(int(self.lengths[first:last].sum()) for first, last in ends)

    @property
    def longest(self) -> int:
        """Tokens that no row has more of."""
        if self.size is not None:
            return self.size.longest
        return int(self.lengths.max()) if len(self.lengths) else 0

    def set_factors(self, factors: Sequence[float]) -> None:
        """Say what each segment's loss counts in its step's; on the host, before the batch goes to the device."""
        for segment, factor in enumerate(factors):
            self.factors_S[segment] = factor

    def pinned(self) -> Batch:
        """The batch in page-locked memory, from which a GPU copies while the host goes on."""
        return self._moved(lambda tensor: tensor.pin_memory())

    def to(self, device: torch.device | str) -> Batch:
        """The batch on a device, by one copy, which nothing waits for where it is pinned."""
        import torch

        if self.labels_R.device == torch.device(device):
            return self
        return self._moved(lambda tensor: tensor.to(device, non_blocking=True))

    def copied(self) -> Batch:
        """The same in memory of its own."""
        return self._moved(lambda tensor: tensor.clone())

    def _moved(self, move: Callable[[Tensor], Tensor]) -> Batch:
        assert self.buffer is not None, "a batch is moved by its buffer"
        pooled = None if self.pooled_RD is None else move(self.pooled_RD)
        return _in_buffer(self.segments, self.lengths, move(self.buffer), pooled, self.size)


def pack_batch(parts: Sequence[tuple[str, TextRows]], size: BatchSize | None = None) -> Batch:
    """A batch on the CPU from each task's rows, in this order.

    Args:
        size: what it is filled up to; None: it is not.
    """
    import torch

    examples = [len(rows.lengths) for _, rows in parts]
    if size is not None:
        parts = [(task, filled_up(rows, each)) for (task, rows), each in zip(parts, size.segments, strict=True)]
    lengths = np.concatenate([rows.lengths for _, rows in parts])
    has_features = any(rows.features is not None for _, rows in parts)
    in_tokens = np.zeros_like(lengths) if has_features else lengths
    places, starts = _places(in_tokens)
    first_lengths = np.concatenate([rows.first_lengths for _, rows in parts])
    types = places >= np.repeat(first_lengths, in_tokens)
    row_ends = np.cumsum([0, *(len(rows.lengths) for _, rows in parts)]).tolist()
    segments = tuple(
        Segment(task, slice(first, last), slice(int(starts[first]), int(starts[last])), last - first - count)
        for (task, _), (first, last), count in zip(parts, pairwise(row_ends), examples, strict=True)
    )
    of_segments = [starts[s.rows.start : s.rows.stop + 1] - starts[s.rows.start] for s in segments]
    labels = np.concatenate([rows.labels for _, rows in parts]).astype(np.float32, copy=False)
    tokens = [] if has_features else [rows.tokens for _, rows in parts]
    scales = np.array([*np.ones(len(parts)), *examples], dtype=np.float64).view(np.int32)
    buffer = np.concatenate(
        [scales, *tokens, types, places, starts, *of_segments, labels.view(np.int32)], dtype=np.int32, casting="unsafe"
    )
    pooled = None
    if has_features:
        pooled = torch.from_numpy(np.concatenate([rows.features for _, rows in parts if rows.features is not None]))
    return _in_buffer(segments, lengths, torch.from_numpy(buffer), pooled, size)


def filled_up(rows: TextRows, size: SegmentSize) -> TextRows:
    """The rows and, behind them, rows of [PAD] without a label up to this size."""
    count, tokens = size.rows - len(rows.lengths), size.tokens - len(rows.tokens)
    own = np.full(count, tokens // count, dtype=np.int32)
    own[: tokens % count] += 1
    return TextRows(
        tokens=np.concatenate([rows.tokens, np.zeros(tokens, dtype=rows.tokens.dtype)]),
        lengths=np.concatenate([rows.lengths, own]),
        first_lengths=np.concatenate([rows.first_lengths, own]),
        labels=np.concatenate([rows.labels, np.full(count, np.nan, dtype=np.float32)]),
    )


def _places(lengths: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(each token's place in its row, where each row begins and the last one ends)."""
    starts = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=starts[1:])
    return np.arange(starts[-1]) - np.repeat(starts[:-1], lengths), starts


def _in_buffer(
    segments: tuple[Segment, ...],
    lengths: NDArray[np.int32],
    buffer: Tensor,
    pooled_RD: Tensor | None,
    size: BatchSize | None,
) -> Batch:
    """The batch whose parts lie in the buffer one behind the other."""
    import torch

    tokens, rows = segments[-1].tokens.stop, len(lengths)
    # As many numbers in float64 as segments, each of two int32; first, since they have to stand at even places.
    scales = 2 * len(segments)
    sizes = [scales, scales] + [tokens] * 3 + [rows + 1] + [segment.row_count + 1 for segment in segments] + [rows]
    factors, examples, ids, types, places, starts, *of_segments, labels = buffer.split(sizes)
    return Batch(
        segments=segments,
        lengths=lengths,
        input_ids_T=ids,
        token_type_ids_T=types,
        positions_T=places,
        row_starts=starts,
        segment_row_starts=tuple(of_segments),
        labels_R=labels.view(torch.float32),
        factors_S=factors.view(torch.float64),
        examples_S=examples.view(torch.float64),
        pooled_RD=pooled_RD,
        buffer=buffer,
        size=size,
    )


def batch_of_texts(task: str, texts: list[tuple[str, str | None]], tokenizer: Tokenizer, *, max_length: int) -> Batch:
    """A batch straight from texts, for a person who asks about one."""
    tokenizer.enable_truncation(max_length, strategy="longest_first")
    encodings = tokenizer.encode_batch([a if b is None else (a, b) for a, b in texts])
    tokenizer.no_truncation()
    rows = TextRows(
        tokens=np.concatenate([encoding.ids for encoding in encodings]),
        lengths=np.array([len(encoding.ids) for encoding in encodings], dtype=np.int32),
        first_lengths=np.array([encoding.type_ids.count(0) for encoding in encodings], dtype=np.int32),
        labels=np.full(len(texts), np.nan, dtype=np.float32),
    )
    return pack_batch([(task, rows)])
