"""Bottlenecks inside the layers (Houlsby et al. 2019, https://arxiv.org/abs/1902.00751) and what was made of them."""

from __future__ import annotations

from torch import Tensor

from pal_dist.models.adapters.base import Adapter, Bottlenecks, Geometry
from pal_dist.models.adapters.pal import ProjectedAttentionLayers
from pal_dist.models.packed_rows import PackedRows


class Houlsby(Adapter, kind="houlsby"):
    """x + up(gelu(down(x))) after the attention and after the feed-forward block, before each is added (figure 2)."""

    width = 50

    def __init__(self, geometry: Geometry):
        super().__init__(geometry)
        self.attended, self.fed = (Bottlenecks(geometry, geometry.hidden) for _ in range(2))

    def after_attention(self, layer: int, output_QD: Tensor) -> Tensor:
        return self.attended.add_output(layer, output_QD)

    def after_feed_forward(self, layer: int, output_QD: Tensor) -> Tensor:
        return self.fed.add_output(layer, output_QD)

    def saved_elements(self) -> int:
        return self.attended.saved_elements(shares_input=False) + self.fed.saved_elements(shares_input=False)


class HoulsbyParallel(Houlsby, kind="houlsby_parallel"):
    """As the PAL authors compared it (Bert-n-Pals, modeling.py:273, 371): the second bottleneck reads what the
    feed-forward block reads, and so stands beside it and not behind it."""

    def residual(
        self, layer: int, hidden_TD: Tensor, attended_QD: Tensor, rows: PackedRows, first_only: bool
    ) -> Tensor | None:
        return self.fed.output(layer, attended_QD)

    def after_feed_forward(self, layer: int, output_QD: Tensor) -> Tensor:
        return output_QD

    def saved_elements(self) -> int:
        return self.attended.saved_elements(shares_input=False) + self.fed.saved_elements()


class HoulsbyPlusPAL(ProjectedAttentionLayers, kind="houlsby_plus_pal"):
    """A bottleneck after the attention, and a PAL beside the feed-forward block, which reads what that block reads."""

    width = 156
    reads_attended = True
    reads_all_tokens = True  # the last PAL attends to all tokens of what its layer's attention gives

    def __init__(self, geometry: Geometry):
        super().__init__(geometry)
        self.attended = Bottlenecks(geometry, geometry.bottleneck)

    def after_attention(self, layer: int, output_QD: Tensor) -> Tensor:
        return self.attended.add_output(layer, output_QD)

    def saved_elements(self) -> int:
        return self.attended.saved_elements(shares_input=False)
