"""The adapters of a packed batch: each sees its own task's slice, and nothing of another's.

Shapes: T tokens of R rows of all tasks, Q tokens that ask (T, or R: the first of each row), D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from pal_dist.models.adapters.base import Adapter, Packing, side_by_side
from pal_dist.models.attention import ProjectionHook
from pal_dist.models.packed_rows import PackedRows
from pal_dist.models.precision import autocast


class AdapterSlices:
    """Adapters of one kind, one for each segment of a packed batch, as one."""

    def __init__(self, adapters: Sequence[Adapter], rows: PackedRows, segments: Sequence[PackedRows]):
        """
        Args:
            rows: where all rows stand.
            segments: where each adapter's rows stand, counted from the first token of its slice.
        """
        self.adapters, self.rows, self.segments = list(adapters), rows, list(segments)
        self.tokens, self.counts = [each.tokens for each in segments], [each.count for each in segments]
        self.weights: dict[Any, Any] = {}
        self.compute_dtype: torch.dtype | None = None
        """The 16-bit format of the pass, to which adapters are called under autocast; None: there is none."""

    @classmethod
    def none(cls, rows: PackedRows) -> AdapterSlices:
        """Of an encoder without adapters."""
        return cls([], rows, [rows])

    @property
    def read_all_tokens(self) -> bool:
        """Whether an adapter needs every token of the last layer."""
        return any(adapter.reads_all_tokens for adapter in self.adapters)

    def projection_hook(self, layer: int, first_only: bool) -> ProjectionHook | None:
        """What changes the layer's queries, keys and values; None where no adapter does."""
        if not self._override("projected"):
            return None

        def hook(part: str, values: Tensor, projected: Tensor) -> Tensor:
            sizes = self._sizes(first_only and part == "query")
            return self._each("projected", (layer, part), sizes, [values, projected])

        return hook

    def after_attention(self, layer: int, output_QD: Tensor, first_only: bool) -> Tensor:
        return self._changed("after_attention", layer, output_QD, first_only)

    def after_feed_forward(self, layer: int, output_QD: Tensor, first_only: bool) -> Tensor:
        return self._changed("after_feed_forward", layer, output_QD, first_only)

    def after_layer(self, layer: int, hidden_QD: Tensor, first_only: bool) -> Tensor:
        return self._changed("after_layer", layer, hidden_QD, first_only)

    def residual(self, layer: int, hidden_TD: Tensor, attended_QD: Tensor, first_only: bool) -> Tensor | None:
        """(Q, D), or None where no adapter adds anything."""
        if not self._override("residual"):
            return None
        place = Packing(self.rows, self.segments, first_only, self.weights)
        hidden, attended = hidden_TD.split(self.tokens), attended_QD.split(self._sizes(first_only))
        with self._autocast(hidden_TD):
            added = type(self.adapters[0]).residual_together(self.adapters, layer, hidden, attended, place)
        return None if added is None else added.to(attended_QD.dtype)

    def on_top(self, hidden_TD: Tensor) -> Tensor:
        if not self._override("on_top"):
            return hidden_TD
        pieces = zip(self.adapters, hidden_TD.split(self.tokens), self.segments, strict=True)
        with self._autocast(hidden_TD):
            return side_by_side([adapter.on_top(own, rows) for adapter, own, rows in pieces]).to(hidden_TD.dtype)

    def _autocast(self, tensor: Tensor) -> AbstractContextManager[None]:
        return nullcontext() if self.compute_dtype is None else autocast(tensor, self.compute_dtype)

    def _override(self, name: str) -> bool:
        """Whether the adapters' kind reaches in at this place."""
        return any(getattr(type(adapter), name) is not getattr(Adapter, name) for adapter in self.adapters)

    def _sizes(self, first_only: bool) -> list[int]:
        return self.counts if first_only else self.tokens

    def _changed(self, name: str, layer: int, values_QD: Tensor, first_only: bool) -> Tensor:
        if not self._override(name):
            return values_QD
        return self._each(name, (layer,), self._sizes(first_only), [values_QD])

    def _each(self, name: str, before: tuple[Any, ...], sizes: list[int], values: Sequence[Tensor]) -> Tensor:
        """The method of each adapter, given what comes `before` and its slice of each of the values; the results side
        by side, in the format of the last values."""
        slices = zip(*(each.split(sizes) for each in values), strict=True)
        with self._autocast(values[-1]):
            pieces = [getattr(adapter, name)(*before, *own) for adapter, own in zip(self.adapters, slices, strict=True)]
            return side_by_side(pieces).to(values[-1].dtype)
