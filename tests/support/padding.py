"""Packed batches as other programs want them: one row under the other, padded to the longest."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pal_dist.data.batch import Batch, TextRows, pack_batch


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


def packed_batch(task: str, input_ids_RL: Tensor, token_type_ids_RL: Tensor, mask_RL: Tensor) -> Batch:
    """What other programs have padded, packed. Token types are taken from where they turn to 1."""
    lengths = mask_RL.sum(dim=1).numpy().astype(np.int32)
    second = (token_type_ids_RL.bool() & mask_RL.bool()).sum(dim=1).numpy()
    return pack_batch(
        [
            (
                task,
                TextRows(
                    packed(input_ids_RL, lengths.tolist()).numpy(),
                    lengths,
                    (lengths - second).astype(np.int32),
                    np.zeros(len(lengths), dtype=np.float32),
                ),
            )
        ]
    )
