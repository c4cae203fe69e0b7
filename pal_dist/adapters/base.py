"""What an adapter is: one module per task that changes how the shared layers treat that task's examples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn


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


class ZeroLinear(nn.Linear):
    """A linear layer that is born zero, so that what stands behind it is born as nothing."""


class Adapter(nn.Module):
    """Base of every kind. A subclass names its `kind` and is found under that name from then on.

    Law: a new adapter changes nothing (identity at birth), and gradients reach every parameter of it within two steps.
    This one class decides what is trained in `pretrain` mode, saved as a task's file and counted as its parameters.
    """

    kinds: ClassVar[dict[str, type[Adapter]]] = {}

    def __init_subclass__(cls, kind: str) -> None:
        assert kind not in Adapter.kinds, f"two adapters are called {kind}"
        Adapter.kinds[kind] = cls

    def __init__(self, geometry: Geometry):
        super().__init__()

    def residual(self, layer: int, hidden_BLD: Tensor, mask: Tensor | None, queries: int) -> Tensor | None:
        """What is added to the residual of the encoder layer's second LayerNorm.

        Args:
            layer: index of the encoder layer.
            hidden_BLD: input of that layer.
            mask: bool, broadcastable to (B, heads, L, L), True where attention may look; None: everywhere.
            queries: Q, how many of the first tokens are wanted: L, or 1 where only the first token is read.

        Returns: (B, Q, D), or None for nothing.
        """
        return None
