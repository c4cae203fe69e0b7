"""Low-rank changes of the projections themselves (Hu et al. 2021, https://arxiv.org/abs/2106.09685)."""

from __future__ import annotations

from torch import Tensor, nn

from pal_dist.models.adapters.base import Adapter, Geometry, ZeroLinear


class LoRA(Adapter, kind="lora"):
    """W h + (alpha / R) B A h for each layer's query and value (section 4.2); B is born zero. No biases, no dropout."""

    width = 8

    ALPHA = 16
    PARTS = ("query", "value")

    def __init__(self, geometry: Geometry):
        super().__init__(geometry)
        self.scale = self.ALPHA / geometry.hidden
        self.changes = nn.ModuleDict(
            {
                f"{layer}_{part}": nn.Sequential(
                    nn.Linear(geometry.encoder_hidden, geometry.hidden, bias=False),
                    ZeroLinear(geometry.hidden, geometry.encoder_hidden, bias=False),
                )
                for layer in geometry.layers
                for part in self.PARTS
            }
        )

    def projected(self, layer: int, part: str, values_TD: Tensor, projected_TD: Tensor) -> Tensor:
        name = f"{layer}_{part}"
        return projected_TD + self.scale * self.changes[name](values_TD) if name in self.changes else projected_TD

    def saved_elements(self) -> int:
        return len(self.PARTS) * self.geometry.hidden
