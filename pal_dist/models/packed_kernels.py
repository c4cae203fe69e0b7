"""Attention within packed rows: which kernel a device takes, and the call of each.

Packed flash attention from capability 8.0 on, in 16 bits; packed memory-efficient attention on other GPUs and in
float32; by length (attention_by_length.py) on a CPU. These two operators are what PyTorch's own jagged tensors call
(torch/nested/_internal/sdpa.py), without their cost in Python. Where it is asked for, rows padded to one length, by
whichever kernel PyTorch takes for that (cuDNN's on some cards). All of them drop attention probabilities.

Shapes: T tokens of R rows, H heads of width W, Q tokens that ask (T, or R: the first of each row).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pal_dist.core.units import round_up
from pal_dist.models.attention_by_length import attention_by_length
from pal_dist.models.packed_rows import PackedRows
from pal_dist.models.precision import KernelTarget, kernel_target

HEAD_WIDTH_MULTIPLE = 8
"""What a head's width must be a multiple of for a GPU's packed kernels: a PAL of 204 with 12 heads has heads of 17."""

FLASH_FROM = (8, 0)
"""Compute capability."""

FLASH_WIDEST_HEAD = 256

FLASH_BLOCK = 128
"""Rows of queries that its backward pass works on together."""

Limits = tuple[Tensor, Tensor, int, int]
"""(starts of the rows of queries, of those of keys, tokens of the longest of each)."""

NO_MASK = 0
"""Of the memory-efficient kernel's kinds of mask."""

PackedKernel = Callable[..., Tensor]
"""`attention_by_length` and what may stand in its place."""

unusable: dict[str, str] = {}
"""Kernels that the check at start found wrong on this device (kernel_check.py), and why."""


def packed_flash(query_RHW: Tensor | None, joined: Tensor, rows: PackedRows, *, p: float, scale: float) -> Tensor:
    """As `attention_by_length`. 16 bits, capability 8.0."""
    query, key, value, query_rows = _spread(query_RHW, joined, rows)
    limits = (query_rows[0], rows.starts, query_rows[1], rows.longest)
    context: Tensor = _PackedFlash.apply(query, key, value, limits, p, scale)
    return context


class _PackedFlash(torch.autograd.Function):
    """The operator with its own derivative, called by hand, so that a trace sees what the derivative allocates."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, limits: Limits, p: float, scale: float) -> Tensor:
        context, sums, state, unused, _ = torch.ops.aten._flash_attention_forward(
            query, key, value, *limits, p, False, False, scale=scale
        )
        ctx.limits, ctx.p, ctx.scale = limits[2:], p, scale
        ctx.save_for_backward(query, key, value, context, sums, state, unused, *limits[:2])
        result: Tensor = context
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, context, sums, state, unused, query_starts, starts = ctx.saved_tensors
        if not query.is_cuda:  # stands for a GPU's tensor: what is allocated is all that counts
            tokens, heads, width = query.shape
            each = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
            # Sums over keys in float32, each row of queries with a block of its own (mha_varlen_bwd, flash_api.cpp).
            rounded = tokens + FLASH_BLOCK * (len(starts) - 1)
            query.new_empty((rounded, heads, round_up(width, 32 if width <= 128 else 64) + 1), dtype=torch.float32)
            return *each, None, None, None
        to_query, to_key, to_value = torch.ops.aten._flash_attention_backward(
            gradients[0].contiguous(),
            query,
            key,
            value,
            context,
            sums,
            query_starts,
            starts,
            *ctx.limits,
            ctx.p,
            False,
            state,
            unused,
            scale=ctx.scale,
        )
        return to_query, to_key, to_value, None, None, None


def packed_efficient(query_RHW: Tensor | None, joined: Tensor, rows: PackedRows, *, p: float, scale: float) -> Tensor:
    """As `attention_by_length`. Any GPU."""
    query, key, value, query_rows = _spread(query_RHW, joined, rows)
    limits = (query_rows[0], rows.starts, query_rows[1], rows.longest)
    context: Tensor = _PackedEfficient.apply(query[None], key[None], value[None], limits, p, scale)
    return context[0]


class _PackedEfficient(torch.autograd.Function):
    """The operator with its own derivative, called by hand: the one that PyTorch registers has no form for tensors
    without memory (its arguments lack one: torch 2.11 to 2.13, _meta_registrations.py)."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        limits: Limits,
        p: float,
        scale: float,
    ) -> Tensor:
        needs_sums = any(ctx.needs_input_grad)
        context, sums, seed, offset, *_ = torch.ops.aten._efficient_attention_forward(
            query, key, value, None, *limits, p, NO_MASK, needs_sums, scale=scale
        )
        ctx.limits, ctx.p, ctx.scale = limits[2:], p, scale
        ctx.save_for_backward(query, key, value, context, sums, seed, offset, *limits[:2])
        result: Tensor = context
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, context, sums, seed, offset, query_starts, starts = ctx.saved_tensors
        if not query.is_cuda:  # stands for a GPU's tensor: what is allocated is all that counts
            return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None, None, None
        to_query, to_key, to_value, _ = torch.ops.aten._efficient_attention_backward(
            gradients[0].contiguous(),
            query,
            key,
            value,
            None,
            context,
            query_starts,
            starts,
            *ctx.limits,
            sums,
            ctx.p,
            seed,
            offset,
            NO_MASK,
            False,
            scale=ctx.scale,
        )
        return to_query, to_key, to_value, None, None, None


def padded(query_RHW: Tensor | None, joined: Tensor, rows: PackedRows, *, p: float, scale: float) -> Tensor:
    """As `attention_by_length`. Anywhere; what it does depends on the longest row alone."""
    tokens_of_places, is_token, place_of_tokens = rows.padded_places
    each = joined.index_select(0, tokens_of_places).view(rows.count, rows.longest, *joined.shape[1:])
    *query, key, value = (part.transpose(1, 2) for part in each.unbind(2))
    asking = query[0] if query_RHW is None else query_RHW[:, :, None]
    context = F.scaled_dot_product_attention(
        asking, key, value, attn_mask=is_token[:, None, None], dropout_p=p, scale=scale
    )
    if query_RHW is not None:
        return context[:, :, 0]
    return context.transpose(1, 2).flatten(0, 1).index_select(0, place_of_tokens)


def _spread(
    query_RHW: Tensor | None, joined: Tensor, rows: PackedRows
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, int]]:
    """Query, key and value by token, and (starts, longest) of the rows of queries."""
    if query_RHW is None:
        query, key, value = joined.unbind(1)
        return query, key, value, (rows.starts, rows.longest)
    key, value = joined.unbind(1)
    return query_RHW, key, value, (rows.single_starts, 1)


KERNELS: dict[str, PackedKernel] = {
    "flash": packed_flash,
    "efficient": packed_efficient,
    "padded": padded,
    "by_length": attention_by_length,
}


UNASKED = ("flash", "efficient")
"""Those that a device takes by itself, the best first."""

preferred: list[str] = [*UNASKED]
"""The order in which kernels are looked at in this process (kernel_choice.py)."""


def suits(name: str, target: KernelTarget, *, dtype: torch.dtype, head_width: int) -> bool:
    """Whether the kernel is made for heads of this (padded) width, in this format, on this device."""
    if name in ("padded", "by_length"):
        return True
    if not target.is_cuda or dtype == torch.float64:
        return False
    in_16_bits = dtype in (torch.float16, torch.bfloat16)
    return name == "efficient" or (
        in_16_bits and (target.capability or (0, 0)) >= FLASH_FROM and head_width <= FLASH_WIDEST_HEAD
    )


def choose_packed_kernel(target: KernelTarget, *, dtype: torch.dtype, head_width: int) -> str:
    """Name of the kernel for heads of this (padded) width in this format; what was found wrong is passed over."""
    if target.attention == "eager":
        return "by_length"
    suited = (name for name in preferred if suits(name, target, dtype=dtype, head_width=head_width))
    return next((name for name in suited if name not in unusable), "by_length")


def padded_head_width(width: int, target: KernelTarget) -> int:
    """The width that heads have in the device's kernels; what is added is zero and changes no score and no context."""
    return round_up(width, HEAD_WIDTH_MULTIPLE) if target.is_cuda else width


def packed_attention(query_RHW: Tensor | None, joined: Tensor, rows: PackedRows, *, p: float, scale: float) -> Tensor:
    """(Q, H, W): scaled dot-product attention within each row, with dropout `p` on the attention probabilities.

    Args:
        query_RHW: the queries of first tokens; None: all tokens ask, and `joined` holds their queries.
        joined: (T, 3, H, W), queries, keys and values; (T, 2, H, W), keys and values, where `query_RHW` is given.
    """
    if not rows.tokens:  # a rank without rows of a task runs its modules all the same
        return joined.sum(1) if query_RHW is None else query_RHW + joined.sum()
    kernel = choose_packed_kernel(kernel_target(joined), dtype=joined.dtype, head_width=joined.shape[-1])
    return KERNELS[kernel](query_RHW, joined, rows, p=p, scale=scale)
