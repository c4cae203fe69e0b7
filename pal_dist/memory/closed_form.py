"""The memory of one optimizer step in microseconds, for the search over plans: what `trace` finds, as arithmetic.

Every term is a tensor that the step keeps or makes; a test holds the sum to the trace on random configurations
(tests/test_closed_form.py). It knows this project's model alone; `trace` knows any.

Shapes: B examples, L tokens, N = B * L, D hidden, F intermediate, A heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from pal_dist.encoder import is_checkpointed
from pal_dist.memory.trace import PAGED_FROM
from pal_dist.memory.tracker import ACTIVATIONS, GRADIENTS, OPTIMIZER, PARAMETERS, TEMPORARIES, WEIGHT_COPIES

EIGHT_BIT_FROM, EIGHT_BIT_BLOCK = 4096, 256
"""bitsandbytes: elements from which a state is kept in 8 bits; elements that share a 4-byte maximum."""


@dataclass(frozen=True)
class Shape:
    """What decides a model's memory."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    first_only: bool
    """The last layer computes the first token alone (every pooling but the mean)."""
    adapter_layers: frozenset[int]
    adapter_width: int
    adapter_heads: int
    trained: tuple[tuple[int, bool], ...]
    """(elements, whether it is an embedding) of each trained parameter."""
    frozen: int
    """Elements of all other parameters."""
    layer_matrices: int
    """Elements of one layer's weights that go into matrix products."""
    adapter_matrices: int
    """Elements of one task's adapter that go into matrix products."""
    vocabulary: int
    dropout: bool

    @property
    def parameters(self) -> int:
        return sum(count for count, _ in self.trained) + self.frozen

    @property
    def trained_parameters(self) -> int:
        return sum(count for count, _ in self.trained)


@dataclass(frozen=True)
class Levers:
    """What may be pulled without touching model or data. `low` is the width in bytes of the compute precision."""

    precision: str = "fp32"
    attention: str = "sdpa"
    checkpoint_layers: int = 0
    optimizer: str = "adamw"

    @property
    def autocast(self) -> bool:
        return self.precision != "fp32"


def shape_of(model: nn.Module, config: Any) -> Shape:
    """The shape of a MultiTaskBert (a meta or fake one will do) with this MultiTaskBertConfig."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    parameters = list(model.parameters())
    one_layer: Any = model.get_submodule("bert.encoder.layer.0")
    one_adapter: Any = next(iter(model.get_submodule("adapters").children()))
    return Shape(
        hidden=config.hidden_size, intermediate=config.intermediate_size, layers=config.num_hidden_layers,
        heads=config.num_attention_heads, first_only=config.pooling != "mean",
        adapter_layers=frozenset(config.geometry().layers) if config.adapter != "none" else frozenset(),
        adapter_width=config.adapter_hidden, adapter_heads=config.adapter_heads,
        trained=tuple((p.numel(), id(p) in embeddings) for p in parameters if p.requires_grad),
        frozen=sum(p.numel() for p in parameters if not p.requires_grad),
        layer_matrices=sum(p.numel() for p in one_layer.parameters() if p.ndim > 1),
        adapter_matrices=sum(p.numel() for p in one_adapter.parameters() if p.ndim > 1),
        vocabulary=config.vocab_size, dropout=config.hidden_dropout_prob > 0,
    )  # fmt: skip


def optimizer_bytes(shape: Shape, optimizer: str) -> int:
    """State on the device. 8-bit: two bytes an element, two maxima a block; embeddings and small tensors in 32 bits."""
    total = 0
    for count, embedding in shape.trained:
        if optimizer == "adamw" or embedding or count < EIGHT_BIT_FROM:
            size = 8 * count
        else:
            size = 2 * count + 8 * -(-count // EIGHT_BIT_BLOCK)
        if optimizer.startswith("paged") and count >= PAGED_FROM:
            size -= (8 if embedding else 2) * count
        total += size
    return total


def kept_by_layer(shape: Shape, levers: Levers, batch: int, length: int, *, adapter: bool, queries: int) -> int:
    """Bytes that one encoder layer and the adapter beside it keep for backward, its output included, its input not."""
    low = 2 if levers.autocast else 4
    masks = 1 if shape.dropout else 0
    every, asked = batch * length, batch * queries
    D, F = shape.hidden, shape.intermediate
    kept = low * (asked + 2 * every) * D  # query, key, value
    kept += _scores(shape.heads, levers, batch, length, queries, masks)
    if levers.autocast:  # each linear keeps a copy of its input in the low precision
        kept += low * (asked + 2 * every) * D + low * asked * D
    kept += low * asked * D  # context
    kept += 2 * (4 * asked * D + masks * asked * D + 8 * asked)  # before each LayerNorm, its statistics, dropout's mask
    if not levers.autocast:
        kept += 2 * 4 * asked * D  # after each LayerNorm
    kept += 2 * low * asked * F  # before and after the activation
    if adapter:
        kept += _kept_by_pal(shape, levers, batch, length, queries, masks)
    return kept


def _kept_by_pal(shape: Shape, levers: Levers, batch: int, length: int, queries: int, masks: int) -> int:
    low = 2 if levers.autocast else 4
    every, asked = batch * length, batch * queries
    width = shape.adapter_width
    kept = low * every * shape.hidden if levers.autocast else 0  # the copy that `down` keeps
    kept += low * every * width  # down
    padded = -(-width // shape.adapter_heads // 8) * 8 * shape.adapter_heads if levers.attention == "sdpa" else width
    kept += low * (asked + 2 * every + asked) * padded  # query, key, value, context, padded for the fused kernels
    kept += low * asked * width if padded != width else 0  # the context without the padding
    kept += _scores(shape.adapter_heads, levers, batch, length, queries, masks)
    return kept + low * asked * shape.hidden  # before the gelu


def _scores(heads: int, levers: Levers, batch: int, length: int, queries: int, masks: int) -> int:
    if levers.attention == "sdpa":
        return 4 * batch * heads * -(-queries // 32) * 32  # logarithms of sums, one a row
    # Probabilities in float32; after dropout, or in the low precision, once more; dropout's mask.
    again = 2 if levers.autocast else 4 * masks
    return batch * heads * queries * length * (4 + again + masks)


@dataclass(frozen=True)
class Estimate:
    """Bytes of one rank at the peak of a step, by category."""

    peak: int
    categories: dict[str, int]


def step_bytes(
    shape: Shape, levers: Levers, batch: int, length: int, *, accumulates: bool = True, reduction: int = 0
) -> Estimate:
    """Highest allocation of an optimizer step whose largest micro-batch is (batch, length).

    Args:
        accumulates: the step has several micro-batches, so all gradients are alive while the largest is computed.
        reduction: bytes of the buffer that sums gradients over ranks; 0: one rank.
    """
    low, size = 2 if levers.autocast else 4, batch * length
    U, F = 4 * size * shape.hidden, size * shape.intermediate  # one float32 hidden state; elements of one intermediate
    masks = size * shape.hidden if shape.dropout else 0
    scores = batch * shape.heads * length * length * 4 if levers.attention == "eager" else 0
    weight_gradient = (6 if levers.autocast else 4) * shape.hidden * shape.intermediate
    parameters = 4 * shape.parameters
    state, gradients = optimizer_bytes(shape, levers.optimizer), 4 * shape.trained_parameters
    embeddings = U + masks + 8 * size + (0 if levers.autocast else U)
    last = shape.layers - 1
    kept: list[int] = []
    held: list[int] = []  # what a layer leaves behind in forward: all it keeps, or its input where it is checkpointed
    for layer in range(shape.layers):
        queries = 1 if shape.first_only and layer == last else length
        adapter = layer in shape.adapter_layers
        kept.append(kept_by_layer(shape, levers, batch, length, adapter=adapter, queries=queries))
        held.append(U if is_checkpointed(layer, levers.checkpoint_layers) else kept[-1])
    copies = 2 * (shape.layers * shape.layer_matrices + shape.adapter_matrices) if levers.autocast else 0
    one_copy = 2 * shape.layer_matrices if levers.autocast else 0

    # (activations, weight copies, temporaries, gradients) at the moments that can be the peak.
    moments: list[tuple[int, int, int, int]] = []
    resident = gradients if accumulates else 0
    full = last - 1 if shape.first_only and last else last
    running = U + max(2 * low * F, 3 * scores)
    # Gradients of the scores: how many of them are alive beyond what backward has let go of by then.
    score_gradients = int(scores * (1.5 if levers.autocast else 1 if shape.dropout else 2))
    forward_end = U if shape.first_only else (4 if shape.adapter_layers else 3) * U
    moments.append((embeddings + sum(held), copies, forward_end, resident))
    if is_checkpointed(full, levers.checkpoint_layers):
        moments.append((embeddings + sum(held[: full + 1]), copies, running + 2 * U, resident))
    layer_gradients = (gradients - 4 * shape.vocabulary * shape.hidden) // max(1, shape.layers)
    for layer in range(last, -1, -1):
        again = is_checkpointed(layer, levers.checkpoint_layers)
        activations = embeddings + sum(held[: layer + 1])
        if again:  # recomputation stops before the layer's output; under autocast float32 results are still alive
            activations += kept[layer] + (3 * U // 2 if levers.autocast else -U)
        grown = resident or (last - layer) * layer_gradients
        copied = one_copy * sum(
            1 for j in range(layer + 1) if j == layer or not is_checkpointed(j, levers.checkpoint_layers)
        )
        if shape.first_only and layer == last:
            moments.append((activations, copied, 3 * U, grown))
            continue
        feed_forward = 2 * U + low * F + weight_gradient - (0 if levers.autocast else U) - U - masks
        attention = score_gradients - 2 * low * F  # the feed-forward half has been let go of by then
        moments.append((activations, copied, max(feed_forward, attention), grown))
        if layer < last - 1 and accumulates and not levers.checkpoint_layers:
            break  # from here on it only falls
    word_gradient = 4 * shape.vocabulary * shape.hidden if accumulates else 0
    moments.append((embeddings, 0, 2 * U + word_gradient, gradients))
    moments.append((0, 0, reduction, gradients))
    activations, copied, temporaries, alive = max(moments, key=sum)
    categories = {
        PARAMETERS: parameters, GRADIENTS: alive, OPTIMIZER: state, ACTIVATIONS: activations, WEIGHT_COPIES: copied,
        TEMPORARIES: temporaries,
    }  # fmt: skip
    return Estimate(sum(categories.values()), categories)
