"""Projected Attention Layers (Stickland & Murray 2019, https://arxiv.org/abs/1902.02671, section 3.2)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from pal_dist.adapters.base import Adapter, Geometry, ZeroLinear
from pal_dist.attention import SelfAttention


class ProjectedAttentionLayers(Adapter, kind="pal"):
    """PAL_l(h) = gelu(V^D attention_l(V^E h)), beside encoder layer l.

    The attention is multi-head self-attention in the projected space, without an output projection.
    V^E (D -> R) and V^D (R -> D) are one pair per task, tied over the layers and stored once; Q, K and V are each
    layer's own. The trailing GELU is that of the authors' program (modeling.py:306); the paper's formula has none.
    V^D is born zero, so PAL is born as nothing; the authors draw it from N(0, 0.02), which disturbs BERT a little.
    """

    def __init__(self, geometry: Geometry):
        super().__init__(geometry)
        self.down = nn.Linear(geometry.encoder_hidden, geometry.hidden)
        self.up = ZeroLinear(geometry.hidden, geometry.encoder_hidden)
        self.attention = nn.ModuleDict(
            {str(layer): SelfAttention(geometry.hidden, geometry.heads, geometry.dropout) for layer in geometry.layers}
        )

    def residual(self, layer: int, hidden_BLD: Tensor, mask: Tensor | None, queries: int) -> Tensor | None:
        if str(layer) not in self.attention:
            return None
        return F.gelu(self.up(self.attention[str(layer)](self.down(hidden_BLD), mask, queries)))
