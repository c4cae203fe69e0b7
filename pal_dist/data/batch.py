"""One micro-batch: token ids, token types, mask and labels, padded to one length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pal_dist.core.units import round_up

if TYPE_CHECKING:  # text is prepared without PyTorch
    from tokenizers import Tokenizer
    from torch import Tensor


class Batch(NamedTuple):
    """One micro-batch of one task. B examples, L tokens of the longest (rounded up where the device wants it)."""

    task: str
    input_ids_BL: Tensor
    """int64 (B, L), padded with the tokenizer's padding id."""
    token_type_ids_BL: Tensor
    """int64 (B, L): 0 for [CLS] a [SEP], 1 for b [SEP]."""
    mask_BL: Tensor | None
    """bool (B, L), True where there is a token; None where nothing is padded."""
    labels_B: Tensor
    """float32 (B,), NaN where the split has no labels."""
    useful_tokens: int
    """Tokens that are no padding; of cached features, those of the texts that they stand for."""
    pooled_BD: Tensor | None = None
    """What the heads read, (B, D), where it is known already: the tokens are then left out, (B, 0)."""

    @property
    def tokens(self) -> int:  # with padding; cached features have none
        return self.input_ids_BL.numel() if self.pooled_BD is None else self.useful_tokens


def pad_to_batch(
    task: str,
    sequences: Sequence[Any],
    first_lengths: NDArray[np.int32],
    labels: NDArray[np.float32],
    *,
    padding_id: int,
    multiple: int = 1,
) -> Batch:
    """A batch on the CPU from B sequences of token ids, padded to the longest and that up to `multiple`.

    Args:
        first_lengths: (B,), tokens of each sequence up to the end of its first text.
        labels: (B,), NaN where there is none.
    """
    import torch

    lengths = np.array([len(sequence) for sequence in sequences])
    places = np.arange(round_up(int(lengths.max()), multiple))
    input_ids = np.full((len(sequences), len(places)), padding_id, dtype=np.int64)
    for row, sequence in zip(input_ids, sequences, strict=True):
        row[: len(sequence)] = sequence
    mask = places < lengths[:, None]
    return Batch(
        task=task,
        input_ids_BL=torch.from_numpy(input_ids),
        token_type_ids_BL=torch.from_numpy((mask & (places >= first_lengths[:, None])).astype(np.int64)),
        mask_BL=None if mask.all() else torch.from_numpy(mask),
        labels_B=torch.from_numpy(labels),
        useful_tokens=int(lengths.sum()),
    )


def batch_of_texts(
    task: str, texts: list[tuple[str, str | None]], tokenizer: Tokenizer, *, max_length: int, padding_id: int = 0
) -> Batch:
    """A batch straight from texts, for a person who asks about one."""
    tokenizer.enable_truncation(max_length, strategy="longest_first")
    encodings = tokenizer.encode_batch([a if b is None else (a, b) for a, b in texts])
    tokenizer.no_truncation()
    first_lengths = np.array([encoding.type_ids.count(0) for encoding in encodings], dtype=np.int32)
    unknown = np.full(len(texts), np.nan, dtype=np.float32)
    sequences = [encoding.ids for encoding in encodings]
    return pad_to_batch(task, sequences, first_lengths, unknown, padding_id=padding_id)
