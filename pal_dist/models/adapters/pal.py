"""Projected Attention Layers (Stickland & Murray 2019, https://arxiv.org/abs/1902.02671, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pal_dist.models.adapters.base import Adapter, Geometry, Packing, ZeroLinear, side_by_side
from pal_dist.models.adapters.pal_weights import PalRecipe, PalWeights
from pal_dist.models.attention import SelfAttention
from pal_dist.models.packed_kernels import packed_attention
from pal_dist.models.packed_rows import PackedRows
from pal_dist.models.weight_copies import TiedGradient, WeightCopies, tied_linear


class ProjectedAttentionLayers(Adapter, kind="pal"):
    """PAL_l(h) = gelu(V^D attention_l(V^E h)), beside encoder layer l.

    The attention is multi-head self-attention in the projected space, without an output projection.
    V^E (D -> R) and V^D (R -> D) are one pair per task, tied over the layers and stored once; Q, K and V are each
    layer's own. The trailing GELU is that of the authors' program (modeling.py:306); the paper's formula has none.
    V^D is born zero, so PAL is born as nothing; the authors draw it from N(0, 0.02), which disturbs BERT a little.
    """

    has_heads = True

    reads_attended: ClassVar[bool] = False
    """Whether it reads what the feed-forward block reads, and not the layer's input."""

    def __init__(self, geometry: Geometry):
        super().__init__(geometry)
        self.down = nn.Linear(geometry.encoder_hidden, geometry.hidden)
        self.up: nn.Linear = ZeroLinear(geometry.hidden, geometry.encoder_hidden)
        self.attention = nn.ModuleDict(
            {str(layer): SelfAttention(geometry.hidden, geometry.heads, geometry.dropout) for layer in geometry.layers}
        )
        self.copies = WeightCopies(PalRecipe(len(geometry.layers)))

    def stands_beside(self, layer: int) -> bool:
        """Whether the layer has a PAL now."""
        return str(layer) in self.attention

    def attention_of(self, layer: int) -> SelfAttention:
        return cast(SelfAttention, self.attention[str(layer)])

    def scaled(self, layer: int, added_QD: Tensor) -> Tensor:
        """PAL_l's output as it is added."""
        return added_QD

    def residual(
        self, layer: int, hidden_TD: Tensor, attended_QD: Tensor, rows: PackedRows, first_only: bool
    ) -> Tensor | None:
        if not self.stands_beside(layer):
            return None
        values = attended_QD if self.reads_attended else hidden_TD
        context = self.attention_of(layer)(self.down(values), rows, first_only)
        return self.scaled(layer, F.gelu(self.up(context)))

    @classmethod
    def residual_together(
        cls,
        adapters: Sequence[Adapter],
        layer: int,
        hidden_TD: Sequence[Tensor],
        attended_QD: Sequence[Tensor],
        place: Packing,
    ) -> Tensor | None:
        """All tasks' PALs with one call of attention and one GELU: on a GPU each is a launch of its own else."""
        pals = cast(Sequence[ProjectedAttentionLayers], adapters)
        if not all(pal.copies.keeps for pal in pals):  # parameters are whole only inside of their modules
            return super().residual_together(adapters, layer, hidden_TD, attended_QD, place)
        if not pals[0].stands_beside(layer):
            return None
        values = attended_QD if cls.reads_attended else hidden_TD
        queries, projected, weights = [], [], []
        for pal, own, own_rows in zip(pals, values, place.segments, strict=True):
            weights.append(pal._weights(layer, own, place.weights))
            narrow = tied_linear(own, *weights[-1].down, _tied(pal, "down", place))
            asking = own_rows.first(narrow) if place.first_only else None
            query, joined = pal.attention_of(layer).project(narrow, asking, weights[-1].attention)
            queries += [] if query is None else [query]
            projected.append(joined)
        attention = pals[0].attention_of(layer)
        context = packed_attention(
            side_by_side(queries) if queries else None,
            side_by_side(projected),
            place.rows,
            p=attention.dropout if attention.training else 0.0,
            scale=attention.head_width**-0.5,
        ).flatten(1)
        wide = [
            tied_linear(own, *weight.up, _tied(pal, "up", place))
            for pal, own, weight in zip(pals, context.split(place.asking), weights, strict=True)
        ]
        added = F.gelu(side_by_side(wide))
        if cls.scaled is ProjectedAttentionLayers.scaled:
            return added
        return side_by_side([pal.scaled(layer, own) for pal, own in zip(pals, added.split(place.asking), strict=True)])

    def _weights(self, layer: int, values: Tensor, of_pass: dict[Any, Any]) -> PalWeights:
        """`of_pass`: one copy of all layers' weights serves a whole pass, so that their gradients come together."""
        attention = self.attention_of(layer)
        form = attention.copy_form(values)
        if form is None:
            return PalWeights((self.down.weight, self.down.bias), None, (self.up.weight, self.up.bias))
        count = len(self.attention)
        if (self, form) not in of_pass:
            of_pass[self, form] = self.copies.of(form, self._parameters_in_order())
        copies = of_pass[self, form]
        place = list(self.attention).index(str(layer))
        up, up_bias, down, down_bias = copies[2 * count :]
        return PalWeights((down, down_bias), (copies[place], copies[count + place]), (up, up_bias))

    def _parameters_in_order(self) -> list[Tensor]:
        """As `PalRecipe` wants them."""
        layers = [cast(SelfAttention, module) for module in self.attention.values()]
        parameters = [linear.weight for each in layers for linear in each.projections]
        parameters += [linear.bias for each in layers for linear in each.projections]
        return [*parameters, self.up.weight, self.up.bias, self.down.weight, self.down.bias]

    def saved_elements(self) -> int:
        return 0


def _tied(pal: ProjectedAttentionLayers, name: str, place: Packing) -> TiedGradient:
    """That of V^E or V^D in this pass."""
    tied: TiedGradient = place.weights.setdefault((pal, name), TiedGradient())
    return tied


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

    def saved_elements(self) -> int:
        return self.geometry.encoder_hidden  # before the gate

    def set_progress(self, progress: float) -> None:
        later = len(self.order) - 1
        self.awake = 1 + min(later, int(progress / self.AWAKE_BY * later))

    @property
    def stage(self) -> int:
        return self.awake

    def stands_beside(self, layer: int) -> bool:
        # A sleeping layer's gate is zero: left out or computed is the same.
        return layer in self.order[: self.awake]

    def scaled(self, layer: int, added_QD: Tensor) -> Tensor:
        return self.gates[str(layer)] * added_QD
