"""Multi-head self-attention within packed rows, for the encoder and for adapters alike.

Shapes: T tokens of R rows, D hidden, H heads of width W, Q tokens that ask (T, or R: the first of each row).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pal_dist.models.packed_kernels import packed_attention, padded_head_width
from pal_dist.models.packed_rows import PackedRows
from pal_dist.models.precision import compute_dtype, kernel_target
from pal_dist.models.weight_copies import AttentionRecipe, CopyForm, WeightCopies, project_joined

ProjectionHook = Callable[[str, Tensor, Tensor], Tensor]
"""(`query`, `key` or `value`, what was projected, its projection) -> the projection that is used."""

PARTS = ("query", "key", "value")

JoinedWeights = tuple[Tensor, Tensor]
"""Query, key and value weights behind one another, (3 H W, D), and their biases, (3 H W,)."""


class SelfAttention(nn.Module):
    """Multi-head self-attention with query, key and value projections and no output projection."""

    def __init__(self, hidden: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.head_width, self.dropout = heads, hidden // heads, dropout
        self.query, self.key, self.value = (nn.Linear(hidden, hidden) for _ in PARTS)
        self.copies = WeightCopies(AttentionRecipe())

    @property
    def projections(self) -> list[nn.Linear]:
        return [self.query, self.key, self.value]

    def projection_parameters(self) -> list[Tensor]:
        """Weights of query, key and value, then their biases."""
        return [layer.weight for layer in self.projections] + [layer.bias for layer in self.projections]

    def copy_form(self, hidden_TD: Tensor, *, pads: bool = True) -> CopyForm | None:
        """The form in which these values' products want the weights; None where parameters serve as they are.

        Args:
            pads: heads may be padded to what the device's kernels take.
        """
        dtype = compute_dtype(hidden_TD) or hidden_TD.dtype
        width = padded_head_width(self.head_width, kernel_target(hidden_TD)) if pads else self.head_width
        if width == self.head_width and dtype == self.query.weight.dtype:
            return None
        return CopyForm(dtype, self.heads, self.head_width, width)

    def forward(
        self,
        hidden_TD: Tensor,
        rows: PackedRows,
        first_only: bool = False,
        hook: ProjectionHook | None = None,
        weights: JoinedWeights | None = None,
    ) -> Tensor:
        """(Q, D): context of each token that asks, which looks at all tokens of its row.

        Args:
            first_only: the first token of each row asks; otherwise all do.
            hook: may replace each projection.
            weights: copies as `copy_form` wants them, where whoever calls has made them together with others.
        """
        if weights is None and (form := self.copy_form(hidden_TD, pads=hook is None)) is not None:
            weight, bias = self.copies.of(form, self.projection_parameters())
            weights = weight, bias
        asking = rows.first(hidden_TD) if first_only else None
        query, joined = self.project(hidden_TD, asking, weights)
        if hook is not None:
            query, joined = self._hooked(hidden_TD, asking, query, joined, hook)
        p = self.dropout if self.training else 0.0
        context = packed_attention(query, joined, rows, p=p, scale=self.head_width**-0.5)
        return context[..., : self.head_width].flatten(1)

    def project(
        self, hidden_TD: Tensor, asking_RD: Tensor | None, weights: JoinedWeights | None
    ) -> tuple[Tensor | None, Tensor]:
        """(queries of first tokens, (R, H, W), where only they ask; all that is projected together, (T, 3 or 2, H, W)).

        Args:
            asking_RD: the tokens that ask, where they are not all.
            weights: copies, where parameters do not serve as they are.
        """
        query: Tensor | None = None
        if weights is None:
            if asking_RD is not None:
                query = self.query(asking_RD)
            joined = project_joined(hidden_TD, self.projections[0 if query is None else 1 :])
        else:
            weight, bias = weights
            if asking_RD is not None:
                size = len(bias) // 3
                query = F.linear(asking_RD.to(weight.dtype), weight[:size], bias[:size])
                weight, bias = weight[size:], bias[size:]
            joined = F.linear(hidden_TD.to(weight.dtype), weight, bias)
        shape = (
            -1,
            3 if query is None else 2,
            self.heads,
            joined.shape[1] // self.heads // (3 if query is None else 2),
        )
        return None if query is None else query.view(len(query), *shape[2:]), joined.view(len(joined), *shape[1:])

    def _hooked(
        self,
        hidden_TD: Tensor,
        asking_RD: Tensor | None,
        query: Tensor | None,
        joined: Tensor,
        hook: ProjectionHook,
    ) -> tuple[Tensor | None, Tensor]:
        """The same projections, each after the hook, with heads as wide as the device's kernels want them."""
        width = padded_head_width(self.head_width, kernel_target(hidden_TD))

        def changed(part: str, values: Tensor, projected: Tensor) -> Tensor:
            result = hook(part, values, projected.flatten(1)).to(projected.dtype).view_as(projected)
            return F.pad(result, (0, width - self.head_width)) if width != self.head_width else result

        parts: Sequence[str] = PARTS
        if query is not None and asking_RD is not None:
            query, parts = changed("query", asking_RD, query), PARTS[1:]
        pieces = zip(parts, joined.unbind(1), strict=True)
        return query, torch.stack([changed(part, hidden_TD, piece) for part, piece in pieces], dim=1)
