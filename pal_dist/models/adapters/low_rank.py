"""Low-rank layers beside the encoder's (Stickland & Murray 2019, section 3.3), in the authors' form."""

from __future__ import annotations

from torch import Tensor

from pal_dist.models.adapters.base import Adapter, Bottlenecks, Geometry
from pal_dist.models.packed_rows import PackedRows


class LowRank(Adapter, kind="low_rank"):
    """up_l(gelu(down_l(h))) beside encoder layer l, where a PAL would stand; both matrices are each layer's own."""

    width = 100

    def __init__(self, geometry: Geometry):
        super().__init__(geometry)
        self.beside = Bottlenecks(geometry, geometry.hidden)

    def residual(
        self, layer: int, hidden_TD: Tensor, attended_QD: Tensor, rows: PackedRows, first_only: bool
    ) -> Tensor | None:
        return self.beside.output(layer, rows.asked(hidden_TD, first_only))

    def saved_elements(self) -> int:
        return self.beside.saved_elements()
