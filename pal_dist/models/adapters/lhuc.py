"""Learning hidden unit contributions (Swietojanski & Renals 2014), as in the PAL authors' program."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pal_dist.models.adapters.base import Adapter, Geometry


class HiddenUnitContributions(Adapter, kind="lhuc"):
    """Each layer's output times 2 sigmoid(r_l), elementwise; r_l is born zero, so the factor is born 1."""

    def __init__(self, geometry: Geometry):
        super().__init__(geometry)
        self.gates = nn.ParameterDict(
            {str(layer): nn.Parameter(torch.zeros(geometry.encoder_hidden)) for layer in geometry.layers}
        )

    def after_layer(self, layer: int, hidden_QD: Tensor) -> Tensor:
        return hidden_QD * (2 * torch.sigmoid(self.gates[str(layer)])) if str(layer) in self.gates else hidden_QD

    def saved_elements(self) -> int:
        return self.geometry.encoder_hidden  # before the gates
