"""Low-rank layers beside the encoder's (Stickland & Murray 2019, section 3.3), in the authors' form."""

from __future__ import annotations

from torch import Tensor

from pal_dist.models.adapters.base import Adapter, Bottlenecks, Geometry


class LowRank(Adapter, kind="low_rank"):
    """up_l(gelu(down_l(h))) beside encoder layer l, where a PAL would stand; both matrices are each layer's own."""

    width = 100

    def __init__(self, geometry: Geometry):
        super().__init__(geometry)
        self.beside = Bottlenecks(geometry, geometry.hidden)

    def residual(
        self, layer: int, hidden_BLD: Tensor, attended_BQD: Tensor, mask: Tensor | None, queries: int
    ) -> Tensor | None:
        return self.beside.output(layer, hidden_BLD[:, :queries])

    def saved_elements(self, *, copies: bool) -> int:
        return self.beside.saved_elements(copies=copies)
