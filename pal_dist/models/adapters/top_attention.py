"""Attention on top of the encoder, in a projected space (Stickland & Murray 2019, section 3.1)."""

from __future__ import annotations

from torch import Tensor, nn

from pal_dist.core.units import round_up
from pal_dist.models.adapters.base import Adapter, Geometry, ZeroLinear
from pal_dist.models.attention import SelfAttention
from pal_dist.models.dropout import Dropout
from pal_dist.models.packed_kernels import HEAD_WIDTH_MULTIPLE
from pal_dist.models.packed_rows import PackedRows


class TopAttention(Adapter, kind="top_attention"):
    """h + V^D top_6(... top_1(V^E h)), each top_i being LN(x + W_O attention(x)) of width R.

    The authors' program gives V^D(...) alone to the heads, drawn at random; here it is added to h and born as nothing.
    """

    has_heads = True
    reads_all_tokens = True

    DEPTH = 6
    """Of the authors' configuration (top_attn_config.json)."""

    def __init__(self, geometry: Geometry):
        super().__init__(geometry)
        self.down = nn.Linear(geometry.encoder_hidden, geometry.hidden)
        self.layers = nn.ModuleList(_Attention(geometry) for _ in range(self.DEPTH))
        self.up = ZeroLinear(geometry.hidden, geometry.encoder_hidden)

    def on_top(self, hidden_TD: Tensor, rows: PackedRows) -> Tensor:
        values = self.down(hidden_TD)
        for layer in self.layers:
            values = layer(values, rows)
        return hidden_TD + self.up(values)

    def saved_elements(self) -> int:
        return 0

    def saved_elements_on_top(self, *, in_16_bits: bool) -> tuple[int, int, int]:
        width, heads = self.geometry.hidden, self.geometry.heads
        # Query, key, value and context, as the fused kernels want them.
        padded = round_up(width // heads, HEAD_WIDTH_MULTIPLE) * heads
        # LayerNorm's input and output, twice as wide where a copy of it is kept too; dropout's mask.
        each = (
            4 * padded
            + width * (2 + in_16_bits + (padded != width))
            + (width // (2 if in_16_bits else 4) if self.geometry.dropout else 0)
        )
        return self.DEPTH * each + 2 * width, self.DEPTH, heads


class _Attention(nn.Module):
    def __init__(self, geometry: Geometry):
        super().__init__()
        self.attention = SelfAttention(geometry.hidden, geometry.heads, geometry.dropout)
        self.dense = nn.Linear(geometry.hidden, geometry.hidden)
        self.LayerNorm = nn.LayerNorm(geometry.hidden, eps=1e-12)
        self.dropout = Dropout(geometry.dropout)

    def forward(self, values_TR: Tensor, rows: PackedRows) -> Tensor:
        context = self.attention(values_TR, rows)
        return self.LayerNorm(values_TR + self.dropout(self.dense(context)))
