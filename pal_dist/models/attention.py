"""Scaled dot-product attention and dropout, for the encoder and for adapters alike.

On a GPU both are PyTorch's own fused kernels. On a CPU PyTorch draws a dropout mask one slow Bernoulli variable at a
time (8 % of a training step of MiniLM), so there we draw 16 random bits an element instead, four elements a draw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pal_dist.core.units import ceil_div, round_up

_LEVELS = 1 << 16
"""Dropout's probability is a multiple of one over this, on a CPU."""

HEAD_WIDTH_MULTIPLE = 8
"""What a head's width must be a multiple of for a GPU's fused kernels: a PAL of 204 with 12 heads has heads of 17, and
PyTorch would silently fall back to the kernel that keeps every L x L score."""

ProjectionHook = Callable[[str, Tensor, Tensor], Tensor]
"""(`query`, `key` or `value`, what was projected, its projection) -> the projection that is used."""

_emulated: ContextVar[str | None] = ContextVar("emulated kernels", default=None)


@contextmanager
def emulate_kernels_of(device_type: str) -> Iterator[None]:
    """Within, code takes the way it would take on such a device, whatever its tensors are (for traces of memory)."""
    token = _emulated.set(device_type)
    try:
        yield
    finally:
        _emulated.reset(token)


def kernel_device_type(tensor: Tensor) -> str:
    """Type of the device whose kernels work on the tensor: `cpu` or `cuda`."""
    return _emulated.get() or tensor.device.type


class _BitDropout(torch.autograd.Function):
    """Dropout whose mask is 16 random bits an element against a threshold; p is rounded to a multiple of 2^-16."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, level: int) -> Tensor:
        draws = torch.empty(ceil_div(values.numel(), 4), dtype=torch.int64, device=values.device)
        # random_() leaves the sign bit of an int64 clear; this range fills all 64 bits.
        draws.random_(-(1 << 63), None)
        keep = draws.view(torch.int16)[: values.numel()].view(values.shape) >= level - _LEVELS // 2
        ctx.scale = _LEVELS / (_LEVELS - level)
        ctx.save_for_backward(keep)
        return torch.ops.aten.native_dropout_backward(values, keep, ctx.scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (keep,) = ctx.saved_tensors
        return torch.ops.aten.native_dropout_backward(gradients[0], keep, ctx.scale), None


def dropout(values: Tensor, p: float, training: bool) -> Tensor:
    """Zero each element with probability `p` and scale the others by 1 / (1 - p); the identity outside training."""
    if not training or p == 0.0:
        return values
    if kernel_device_type(values) == "cpu":
        result: Tensor = _BitDropout.apply(values, round(p * _LEVELS))
        return result
    return F.dropout(values, p)


class Dropout(nn.Module):
    """`dropout` as a module."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, values: Tensor) -> Tensor:
        return dropout(values, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}"


def attention(
    query_BQD: Tensor, key_BLD: Tensor, value_BLD: Tensor, mask: Tensor | None, *, heads: int, p: float, training: bool
) -> Tensor:
    """Multi-head scaled dot-product attention with dropout `p` on the attention probabilities.

    Args:
        query_BQD, key_BLD, value_BLD: projected inputs; D is split into `heads`.
        mask: bool, broadcastable to (B, heads, Q, L), True where attention may look; None: everywhere.

    Returns: (B, Q, D).
    """
    query, key, value = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query_BQD, key_BLD, value_BLD))
    if training and p > 0 and kernel_device_type(query) == "cpu":
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        context = dropout(scores.softmax(-1), p, training) @ value
    else:
        width = query.shape[-1]
        padding = round_up(width, head_width_multiple(kernel_device_type(query))) - width
        if padding:  # zeros change neither scores nor context; the scale is that of the true width
            query, key, value = (F.pad(x, (0, padding)) for x in (query, key, value))
        p = p if training else 0.0
        context = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=p, scale=width**-0.5)
        context = context[..., :width]
    return context.transpose(1, 2).flatten(2)


def head_width_multiple(device_type: str) -> int:
    """A head's width is padded to a multiple of this on such a device."""
    return HEAD_WIDTH_MULTIPLE if device_type == "cuda" else 1


class SelfAttention(nn.Module):
    """Multi-head self-attention with query, key and value projections and no output projection."""

    def __init__(self, hidden: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query, self.key, self.value = (nn.Linear(hidden, hidden) for _ in range(3))

    def forward(
        self, hidden_BLD: Tensor, mask: Tensor | None, queries: int, hook: ProjectionHook | None = None
    ) -> Tensor:
        """(B, Q, D): context of the first Q = `queries` tokens, each looking at all L.

        Args:
            hook: may replace each projection.
        """
        parts = {"query": hidden_BLD[:, :queries], "key": hidden_BLD, "value": hidden_BLD}
        projections = {name: getattr(self, name)(values) for name, values in parts.items()}
        if hook is not None:
            projections = {name: hook(name, parts[name], values) for name, values in projections.items()}
        return attention(
            projections["query"],
            projections["key"],
            projections["value"],
            mask,
            heads=self.heads,
            p=self.dropout,
            training=self.training,
        )
