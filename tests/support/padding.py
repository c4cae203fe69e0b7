"""Packed batches as other programs want them: one row under the other, padded to the longest."""

from __future__ import annotations

import torch
from torch import Tensor

from pal_dist.data.batch import Batch


def padded(values_T: Tensor, lengths: list[int], fill: float = 0) -> Tensor:
    """(R, L, ...) of what stands token after token, (T, ...)."""
    return torch.nn.utils.rnn.pad_sequence(list(values_T.split(lengths)), batch_first=True, padding_value=fill)


def padded_inputs(batch: Batch) -> dict[str, Tensor]:
    """What Transformers' BertModel is called with."""
    lengths = batch.lengths.tolist()
    return {
        "input_ids": padded(batch.input_ids_T, lengths).long(),
        "token_type_ids": padded(batch.token_type_ids_T, lengths).long(),
        "attention_mask": padded(torch.ones_like(batch.input_ids_T), lengths).long(),
    }


def packed(values_RL: Tensor, lengths: list[int]) -> Tensor:
    """The reverse of `padded`."""
    return torch.cat([row[:length] for row, length in zip(values_RL, lengths, strict=True)])
