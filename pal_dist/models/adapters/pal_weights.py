"""A PAL's weights as its products want them: copies of all layers' made together, since each of them is small.

Shapes: D hidden of the encoder, R width of the PAL, H heads of width W (padded), W' as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pal_dist.models.attention import JoinedWeights
from pal_dist.models.weight_copies import CopyForm, Gradients, cast_together, joined, separated


class PalWeights(NamedTuple):
    """What PAL_l multiplies with."""

    down: tuple[Tensor, Tensor]
    """(R, D) and (R,)."""
    attention: JoinedWeights | None
    """None: attention reads its own parameters."""
    up: tuple[Tensor, Tensor]
    """(D, H W) and (D,)."""


@dataclass(frozen=True)
class PalRecipe:
    """From weights (R, R) and biases (R,) of query, key and value of all layers, V^D's weight and bias, V^E's weight
    and bias, to joined weights (3 H W, R) of each layer, their biases (3 H W,), V^D's weight (D, H W), the other three.
    """

    layers: int

    def copies(self, form: CopyForm, parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
        of_layers = 3 * self.layers
        weights, biases = joined(parameters[:of_layers], form), joined(parameters[of_layers : 2 * of_layers], form)
        up, *others = parameters[2 * of_layers :]
        if form.pads:
            padded = up.new_zeros((len(up), form.heads, form.padded_width), dtype=form.dtype)
            padded[:, :, : form.width].copy_(up.view(len(up), form.heads, form.width))
            up = padded.flatten(1)
        else:
            up = up.to(form.dtype)
        return (
            *weights.chunk(self.layers),
            *biases.chunk(self.layers),
            up,
            *cast_together(others, form.dtype),
        )

    def gradients(self, form: CopyForm, gradients: Gradients, dtype: torch.dtype) -> list[Tensor | None]:
        weights, biases = gradients[: self.layers], gradients[self.layers : 2 * self.layers]
        up, *others = gradients[2 * self.layers :]
        if up is not None and form.pads:
            rows = up.view(len(up), form.heads, form.padded_width)[:, :, : form.width]
            up = rows.to(dtype, memory_format=torch.contiguous_format).flatten(1)
        present = cast_together([other for other in [up, *others] if other is not None], dtype)
        wide = iter(present)
        return [
            *self._of_layers(form, weights, dtype),
            *self._of_layers(form, biases, dtype),
            *(None if other is None else next(wide) for other in [up, *others]),
        ]

    def _of_layers(self, form: CopyForm, gradients: Gradients, dtype: torch.dtype) -> list[Tensor | None]:
        """Of query, key and value of each layer, from the layers' joined ones; None for a layer that was not run."""
        run = [gradient for gradient in gradients if gradient is not None]
        parts = iter(separated(torch.cat(run), form, 3 * len(run), dtype) if run else ())
        return [None if gradient is None else next(parts) for gradient in gradients for _ in range(3)]
