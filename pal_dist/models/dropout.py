"""Dropout, for the encoder, adapters and heads alike.

On a GPU it is PyTorch's own fused kernel. On a CPU PyTorch draws a mask one slow Bernoulli variable at a time (8 % of a
training step of MiniLM), so there we draw 16 random bits an element instead, four elements a draw.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pal_dist.core.units import ceil_div
from pal_dist.models.precision import kernel_target

LEVELS = 1 << 16
"""Dropout's probability is a multiple of one over this, on a CPU."""


def draw_keep_mask(count: int, level: int, device: torch.device) -> Tensor:
    """bool (count,): each is True with probability 1 - level / LEVELS."""
    draws = torch.empty(ceil_div(count, 4), dtype=torch.int64, device=device)
    # random_() leaves the sign bit of an int64 clear; this range fills all 64 bits.
    draws.random_(-(1 << 63), None)
    return draws.view(torch.int16)[:count] >= level - LEVELS // 2


def apply_keep_mask(values: Tensor, keep: Tensor, level: int) -> Tensor:
    """The values that are kept, scaled so that their mean stays; zeros elsewhere."""
    result: Tensor = torch.ops.aten.native_dropout_backward(values, keep, LEVELS / (LEVELS - level))
    return result


class _BitDropout(torch.autograd.Function):
    """Dropout whose mask is 16 random bits an element against a threshold; p is rounded to a multiple of 2^-16."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, level: int) -> Tensor:
        keep = draw_keep_mask(values.numel(), level, values.device).view(values.shape)
        ctx.level = level
        ctx.save_for_backward(keep)
        return apply_keep_mask(values, keep, level)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (keep,) = ctx.saved_tensors
        return apply_keep_mask(gradients[0], keep, ctx.level), None


def dropout(values: Tensor, p: float, training: bool) -> Tensor:
    """Zero each element with probability `p` and scale the others by 1 / (1 - p); the identity outside training."""
    if not training or p == 0.0:
        return values
    if kernel_target(values).is_cuda:
        return F.dropout(values, p)
    result: Tensor = _BitDropout.apply(values, round(p * LEVELS))
    return result


class Dropout(nn.Module):
    """`dropout` as a module."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, values: Tensor) -> Tensor:
        return dropout(values, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}"
