"""Gradients that stay in one place from step to step: a CUDA graph adds to the memory that it was recorded on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import Parameter


class GradientPlaces:
    """A place for each parameter's gradient, made when it is first wanted."""

    def __init__(self) -> None:
        self.places: dict[Parameter, Tensor] = {}

    def use(self, parameters: Sequence[Parameter]) -> None:
        """From now on these parameters' gradients are in their places: zero where there was none, else as they were.

        A parameter without gradient elsewhere keeps none: an optimizer then leaves it alone.
        """
        empty: list[Tensor] = []
        moved: list[tuple[Tensor, Tensor]] = []
        for parameter in parameters:
            place, gradient = self.places.get(parameter), parameter.grad
            if place is None:
                place = self.places[parameter] = torch.empty_like(parameter)
            if gradient is None:
                empty.append(place)
            elif gradient is not place:
                moved.append((place, gradient))
            parameter.grad = place
        if empty:
            torch._foreach_zero_(empty)
        if moved:
            torch._foreach_copy_([place for place, _ in moved], [gradient for _, gradient in moved])
