"""Projected Attention Layers (Stickland & Murray 2019, https://arxiv.org/abs/1902.02671, section 3.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pal_dist.models.adapters.base import Adapter, Geometry, ZeroLinear
from pal_dist.models.attention import SelfAttention
from pal_dist.models.packed_rows import PackedRows


class ProjectedAttentionLayers(Adapter, kind="pal"):
    """PAL_l(h) = gelu(V^D attention_l(V^E h)), beside encoder layer l.

    The attention is multi-head self-attention in the projected space, without an output projection.
    V^E (D -> R) and V^D (R -> D) are one pair per task, tied over the layers and stored once; Q, K and V are each
    layer's own. The trailing GELU is that of the authors' program (modeling.py:306); the paper's formula has none.
    V^D is born zero, so PAL is born as nothing; the authors draw it from N(0, 0.02), which disturbs BERT a little.
    """

    has_heads = True

    def __init__(self, geometry: Geometry):
        super().__init__(geometry)
        self.down = nn.Linear(geometry.encoder_hidden, geometry.hidden)
        self.up: nn.Linear = ZeroLinear(geometry.hidden, geometry.encoder_hidden)
        self.attention = nn.ModuleDict(
            {str(layer): SelfAttention(geometry.hidden, geometry.heads, geometry.dropout) for layer in geometry.layers}
        )

    def residual(
        self, layer: int, hidden_TD: Tensor, attended_QD: Tensor, rows: PackedRows, first_only: bool
    ) -> Tensor | None:
        return self.project(layer, hidden_TD, rows, first_only)

    def saved_elements(self, *, copies: bool) -> int:
        return 0

    def project(self, layer: int, values_TD: Tensor, rows: PackedRows, first_only: bool) -> Tensor | None:
        """PAL_l of the values, (Q, D); None where the layer has none."""
        if str(layer) not in self.attention:
            return None
        return F.gelu(self.up(self.attention[str(layer)](self.down(values_TD), rows, first_only)))


class ProgressivePALs(ProjectedAttentionLayers, kind="progressive_pal"):
    """PALs that wake one after the other, the top layer's first, while the run advances.

    PAL_l is multiplied by a gate of its own that is born zero, so a layer changes nothing when it wakes. Until then it
    is not computed, has no gradient and gets no optimizer state. What is awake follows from the share of steps done:
    a run that is resumed wakes the same layers at the same steps.
    """

    trains_parts_later = True

    AWAKE_BY = 0.5
    """Share of the run's steps after which all are awake."""

    def __init__(self, geometry: Geometry):
        super().__init__(geometry)
        self.up = nn.Linear(geometry.hidden, geometry.encoder_hidden)
        self.gates = nn.ParameterDict({str(layer): nn.Parameter(torch.zeros(1)) for layer in geometry.layers})
        self.order = sorted(geometry.layers, reverse=True)
        self.awake = len(self.order)

    def saved_elements(self, *, copies: bool) -> int:
        return self.geometry.encoder_hidden  # before the gate

    def set_progress(self, progress: float) -> None:
        later = len(self.order) - 1
        self.awake = 1 + min(later, int(progress / self.AWAKE_BY * later))

    def residual(
        self, layer: int, hidden_TD: Tensor, attended_QD: Tensor, rows: PackedRows, first_only: bool
    ) -> Tensor | None:
        # A sleeping layer's gate is zero: left out or computed is the same.
        if layer not in self.order[: self.awake]:
            return None
        added = self.project(layer, hidden_TD, rows, first_only)
        return None if added is None else self.gates[str(layer)] * added
