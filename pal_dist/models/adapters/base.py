"""What an adapter is: one module per task that changes how the shared layers treat that task's examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pal_dist.models.packed_rows import PackedRows


@dataclass(frozen=True)
class Geometry:
    """What an adapter may know of the encoder and of the run's choices."""

    encoder_hidden: int
    """Width D of the encoder."""
    layers: tuple[int, ...]
    """Encoder layers that carry the adapter."""
    hidden: int
    """Width R of the adapter."""
    heads: int
    """Attention heads of the adapter, where it has any."""
    dropout: float
    """Probability of dropout inside the adapter."""
    bottleneck: int = 50
    """Width of a second, narrower part, where the adapter has one."""


@dataclass(frozen=True)
class Packing:
    """How the rows of all tasks lie in a pass through the encoder."""

    rows: PackedRows
    """Of all tasks."""
    segments: Sequence[PackedRows]
    """Of each adapter's task, counted from the first token of its slice."""
    first_only: bool
    """Only the first token of each row is wanted."""
    weights: dict[Any, Any]
    """What an adapter has made of its weights in this pass."""

    @property
    def asking(self) -> list[int]:
        """How many tokens of each segment are wanted."""
        return [rows.count if self.first_only else rows.tokens for rows in self.segments]


def side_by_side(pieces: Sequence[Tensor]) -> Tensor:
    """The tasks' slices as one."""
    return pieces[0] if len(pieces) == 1 else torch.cat(list(pieces))


class ZeroLinear(nn.Linear):
    """A linear layer that is born zero, so that what stands behind it is born as nothing."""


class Bottleneck(nn.Module):
    """up(gelu(down(x))), D -> R -> D; born as nothing."""

    def __init__(self, hidden: int, width: int):
        super().__init__()
        self.down = nn.Linear(hidden, width)
        self.up = ZeroLinear(width, hidden)

    def forward(self, values: Tensor) -> Tensor:
        return self.up(F.gelu(self.down(values)))


class Bottlenecks(nn.ModuleDict):
    """A bottleneck of its own for each layer that carries the adapter."""

    def __init__(self, geometry: Geometry, width: int):
        super().__init__({str(layer): Bottleneck(geometry.encoder_hidden, width) for layer in geometry.layers})
        self.hidden, self.width = geometry.encoder_hidden, width

    def output(self, layer: int, values: Tensor) -> Tensor | None:
        """The layer's bottleneck of the values; None where it has none."""
        return self[str(layer)](values) if str(layer) in self else None

    def add_output(self, layer: int, values: Tensor) -> Tensor:
        """The values and, where the layer has one, its bottleneck of them."""
        output = self.output(layer, values)
        return values if output is None else values + output

    def saved_elements(self, *, shares_input: bool = True) -> int:
        """Elements of each token kept for backward: around the gelu, and what `down` reads unless something else keeps
        that anyway (`shares_input`)."""
        return 2 * self.width + (0 if shares_input else self.hidden)


class Adapter(nn.Module):
    """Base of every kind. A subclass names its `kind` and is found under that name from then on.

    Law: a new adapter changes nothing (identity at birth), and gradients reach every parameter of it within two steps.
    This one class decides what is trained in `pretrain` mode, saved as a task's file and counted as its parameters.
    A kind overrides those of the methods below that it needs: the places where it may reach into the encoder.
    Its matrices are `nn.Linear`, drawn at random, or `ZeroLinear`; other parameters stand in an `nn.ParameterDict` and
    are born zero. (`MultiTaskBert._init_weights` gives them these values, since no checkpoint has any for them.)

    Each method sees one task's rows, packed: one behind the other, without padding.

    Shapes: T tokens of R rows, Q tokens that are wanted (T, or R: the first of each row, where only that is read), D
    hidden.
    """

    registry: ClassVar[dict[str, type[Adapter]]] = {}

    width: ClassVar[int] = 204
    """R where a run does not choose it: that of the authors' configuration."""

    has_heads: ClassVar[bool] = False
    """Whether R is split into attention heads."""

    reads_all_tokens: ClassVar[bool] = False
    """Whether it needs every token of the last layer too, of which otherwise only the first is computed."""

    trains_parts_later: ClassVar[bool] = False
    """Whether parts of it begin to be trained later than others (`set_progress`)."""

    def __init_subclass__(cls, kind: str) -> None:
        assert kind not in Adapter.registry, f"two adapters are called {kind}"
        Adapter.registry[kind] = cls

    def __init__(self, geometry: Geometry):
        super().__init__()
        self.geometry = geometry

    def projected(self, layer: int, part: str, values_TD: Tensor, projected_TD: Tensor) -> Tensor:
        """The layer's query, key or value (`part`), as they were projected from `values_TD`."""
        return projected_TD

    def after_attention(self, layer: int, output_QD: Tensor) -> Tensor:
        """The attention's output, W_O and dropout included, before it is added to the layer's input."""
        return output_QD

    def residual(
        self, layer: int, hidden_TD: Tensor, attended_QD: Tensor, rows: PackedRows, first_only: bool
    ) -> Tensor | None:
        """What is added to the residual of the encoder layer's second LayerNorm.

        Args:
            hidden_TD: input of the layer.
            attended_QD: after its first LayerNorm.
            rows: where each row stands among the T tokens, for attention within it (`models/attention.py`).
            first_only: only the first token of each row is wanted: `rows.asked(hidden_TD, first_only)` are those.

        Returns: (Q, D), or None for nothing.
        """
        return None

    @classmethod
    def residual_together(
        cls,
        adapters: Sequence[Adapter],
        layer: int,
        hidden_TD: Sequence[Tensor],
        attended_QD: Sequence[Tensor],
        place: Packing,
    ) -> Tensor | None:
        """`residual` of each adapter on its slice, side by side. A kind may compute for all tasks at once what needs
        none of their parameters.

        Args:
            hidden_TD, attended_QD: each adapter's slice.
        """
        added = [
            adapter.residual(layer, own_hidden, own_attended, rows, place.first_only)
            for adapter, own_hidden, own_attended, rows in zip(
                adapters, hidden_TD, attended_QD, place.segments, strict=True
            )
        ]
        if all(one is None for one in added):
            return None
        pairs = zip(added, attended_QD, strict=True)
        return side_by_side([torch.zeros_like(own) if one is None else one for one, own in pairs])

    def after_feed_forward(self, layer: int, output_QD: Tensor) -> Tensor:
        """The feed-forward block's output, dropout included, before it is added to the residual."""
        return output_QD

    def after_layer(self, layer: int, hidden_QD: Tensor) -> Tensor:
        """The layer's output."""
        return hidden_QD

    def on_top(self, hidden_TD: Tensor, rows: PackedRows) -> Tensor:
        """The last layer's output, as the heads will read it."""
        return hidden_TD

    def saved_elements(self) -> int:
        """About how many elements, in the precision of the computation, a layer with this adapter keeps more for
        backward, for each of its tokens; what PALs keep is known to the planner.

        By default the outputs of all matrices, shared evenly by the layers; what they read, something else keeps.
        """
        matrices = [module for module in self.modules() if isinstance(module, nn.Linear)]
        return sum(matrix.out_features for matrix in matrices) // max(1, len(self.geometry.layers))

    def saved_elements_on_top(self, *, in_16_bits: bool) -> tuple[int, int, int]:
        """The same for what stands on the encoder and not in its layers: (elements for each token, layers of attention,
        heads of each).

        Args:
            in_16_bits: the computation is, so that what is kept in float32 counts twice.
        """
        return 0, 0, 0

    @property
    def stage(self) -> int:
        """A number that changes whenever `set_progress` has changed which kernels run."""
        return 0

    def set_progress(self, progress: float) -> None:
        """The run is about to do a step; `progress` is the share (0 to 1) of its steps that are done."""


class Plain(Adapter, kind="none"):
    """No adapter: plain shared BERT with a head per task."""
