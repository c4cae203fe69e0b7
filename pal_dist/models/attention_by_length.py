"""Attention within packed rows by plain matrix products: rows of equal length that stand side by side go together.

The form of a CPU, where rows are few and sorted by length, and the one that every packed kernel is held against. It
keeps every score. Forward and backward are written out, since autograd's bookkeeping of many small operations costs
more than the operations.

Shapes: T tokens of R rows, H heads of width W, n rows of length L, Q tokens that ask (T, or R: the first of each row).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pal_dist.models.dropout import LEVELS, apply_keep_mask, draw_keep_mask
from pal_dist.models.packed_rows import PackedRows, Run


def attention_by_length(
    query_RHW: Tensor | None, joined: Tensor, rows: PackedRows, *, p: float, scale: float
) -> Tensor:
    """(Q, H, W): the context of each token that asks.

    Args:
        query_RHW: the queries of first tokens; None: all tokens ask, and `joined` holds their queries.
        joined: (T, 3, H, W), queries, keys and values; (T, 2, H, W), keys and values, where `query_RHW` is given.
        p: probability of dropout on the attention probabilities.
        scale: of the scores.
    """
    result: Tensor = _AttentionByLength.apply(query_RHW, joined, rows.runs, round(p * LEVELS), scale)
    return result


class _AttentionByLength(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor | None, joined: Tensor, runs: Sequence[Run], level: int, scale: float
    ) -> Tensor:
        tokens, _, heads, width = joined.shape
        context = joined.new_empty((tokens if query is None else len(query), heads, width))
        sizes = [run.rows * heads * run.length * (run.length if query is None else 1) for run in runs]
        masks = draw_keep_mask(sum(sizes), level, joined.device).split(sizes) if level else [None] * len(runs)
        saved: list[Tensor | None] = []
        for run, drawn in zip(runs, masks, strict=True):
            q, k, v = _run_of(query, joined, run)
            scores = torch.baddbmm(q.new_empty(()), q, k.mT, beta=0, alpha=scale)
            probabilities = torch._softmax(scores, -1, False)  # below autocast, which would have it in float32
            mask = None if drawn is None else drawn.view(scores.shape)
            weights = probabilities if mask is None else apply_keep_mask(probabilities, mask, level)
            _asked_part(context, run, query is None).copy_(_by_row(torch.bmm(weights, v), run, heads))
            saved += [q, k, v, probabilities, mask]
        ctx.save_for_backward(*saved)
        ctx.runs, ctx.level, ctx.scale, ctx.shape, ctx.has_query = runs, level, scale, joined.shape, query is not None
        return context

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, None, None, None]:
        (gradient,) = gradients
        heads = ctx.shape[2]
        joined = gradient.new_empty(ctx.shape)
        query = torch.empty_like(gradient) if ctx.has_query else None
        saved = iter(ctx.saved_tensors)
        for run in ctx.runs:
            q, k, v, probabilities, mask = (next(saved) for _ in range(5))
            given = _by_head(_asked_part(gradient, run, query is None), run, heads)
            weights = probabilities if mask is None else apply_keep_mask(probabilities, mask, ctx.level)
            to_weights = torch.bmm(given, v.mT)
            if mask is not None:
                to_weights = apply_keep_mask(to_weights, mask, ctx.level)
            to_scores = torch._softmax_backward_data(to_weights, probabilities, -1, probabilities.dtype)
            none = q.new_empty(())
            parts = [
                torch.baddbmm(none, to_scores, k, beta=0, alpha=ctx.scale),
                torch.baddbmm(none, to_scores.mT, q, beta=0, alpha=ctx.scale),
                torch.bmm(weights.mT, given),
            ]
            if query is not None:
                _asked_part(query, run, False).copy_(_by_row(parts.pop(0), run, heads))
            own = joined[run.first_token : run.first_token + run.rows * run.length]
            for place, part in enumerate(parts):
                own[:, place].view(run.rows, -1, heads, part.shape[-1]).copy_(_by_row(part, run, heads))
        return query, joined, None, None, None


def _run_of(query: Tensor | None, joined: Tensor, run: Run) -> list[Tensor]:
    """Query, key and value of a run, (n H, L, W) each; queries of first tokens (n H, 1, W)."""
    own = joined[run.first_token : run.first_token + run.rows * run.length]
    _, parts, heads, width = own.shape
    block = own.view(run.rows, run.length, parts, heads, width).permute(2, 0, 3, 1, 4)
    pieces = list(block.reshape(parts, run.rows * heads, run.length, width).unbind())
    if query is not None:
        pieces.insert(0, query[run.first_row : run.first_row + run.rows].reshape(run.rows * heads, 1, width))
    return pieces


def _asked_part(values_QHW: Tensor, run: Run, all_ask: bool) -> Tensor:
    """The run's share of what stands by asking token, (n, L or 1, H, W)."""
    first, count = (run.first_token, run.rows * run.length) if all_ask else (run.first_row, run.rows)
    return values_QHW[first : first + count].unflatten(0, (run.rows, -1))


def _by_row(values: Tensor, run: Run, heads: int) -> Tensor:
    """(n H, L, W) -> (n, L, H, W)."""
    return values.unflatten(0, (run.rows, heads)).transpose(1, 2)


def _by_head(values_nLHW: Tensor, run: Run, heads: int) -> Tensor:
    """(n, L, H, W) -> (n H, L, W)."""
    return values_nLHW.transpose(1, 2).reshape(run.rows * heads, -1, values_nLHW.shape[-1])
