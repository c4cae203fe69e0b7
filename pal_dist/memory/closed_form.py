"""The memory of one optimizer step in microseconds, for the search over plans: what `trace` finds, as arithmetic.

Every term is a tensor that the step keeps or makes; a test holds the sum to the trace on random configurations
(tests/ranks/test_closed_form.py). It knows this project's model alone; `trace` knows any.

Shapes: B examples, L tokens, N = B * L, D hidden, F intermediate, A heads, R width of the adapter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

from torch import nn

from pal_dist.core.units import ceil_div, round_up
from pal_dist.memory.trace import PAGED_FROM
from pal_dist.memory.tracker import ACTIVATIONS, GRADIENTS, OPTIMIZER, PARAMETERS, TEMPORARIES, WEIGHT_COPIES
from pal_dist.models.adapters.pal import ProjectedAttentionLayers
from pal_dist.models.encoder import is_checkpointed
from pal_dist.models.multi_task import MultiTaskBert, MultiTaskBertConfig
from pal_dist.models.packed_kernels import HEAD_WIDTH_MULTIPLE

EIGHT_BIT_FROM, EIGHT_BIT_BLOCK = 4096, 256
"""bitsandbytes: elements from which a state is kept in 8 bits; elements that share a 4-byte maximum."""


@dataclass(frozen=True)
class ModelShape:
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
    """0: the adapter is no PAL."""
    saved_by_adapter: tuple[int, int]
    """Elements that the adapter keeps for each token and layer, beside a PAL's; without and with copies of inputs."""
    on_top: tuple[tuple[int, int, int], tuple[int, int, int]]
    """(elements for each token, layers of attention, heads of each) that the adapter keeps on top of the encoder;
    without and with copies of inputs."""
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
    shared: int
    """Elements of the trained parameters that all tasks share."""

    @cached_property
    def parameters(self) -> int:
        return sum(count for count, _ in self.trained) + self.frozen

    @cached_property
    def trained_parameters(self) -> int:
        return sum(count for count, _ in self.trained)


@dataclass(frozen=True)
class StepOptions:
    """What may be chosen without touching model or data."""

    precision: str = "fp32"
    """fp32, or fp16 or bf16 through autocast."""
    attention: str = "sdpa"
    """sdpa: the device's fused kernels; eager: every score is kept."""
    checkpoint_layers: int = 0
    """Every how many layers one is computed again in backward; 0: none."""
    optimizer: str = "adamw"

    @property
    def autocast(self) -> bool:
        return self.precision != "fp32"

    @property
    def compute_bytes(self) -> int:
        """Of one element in the precision of matrix products."""
        return 2 if self.autocast else 4


class PackedSize(NamedTuple):
    """How much a micro-batch holds."""

    tokens: int
    rows: int
    length: int
    """Tokens of each row, but for one that fills up what is left."""
    tasks: int
    """Tasks whose rows these are."""

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        rest = self.tokens - self.rows * self.length
        return [self.length] * self.rows + ([rest] if rest > 0 else [])


def shape_of(model: MultiTaskBert, config: MultiTaskBertConfig) -> ModelShape:
    """The shape of a MultiTaskBert (a meta or fake one will do) with this MultiTaskBertConfig."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    parameters = list(model.parameters())
    one_layer, one_adapter = model.encoder_layers[0], next(iter(model.task_adapters.values()))
    has_parameters = any(True for _ in one_adapter.parameters())
    saved = one_adapter.saved_elements(copies=False), one_adapter.saved_elements(copies=True)
    return ModelShape(
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        first_only=config.pooling != "mean" and not one_adapter.reads_all_tokens,
        adapter_layers=frozenset(config.geometry().layers) if has_parameters else frozenset(),
        adapter_width=config.adapter_hidden,
        adapter_heads=config.adapter_heads if isinstance(one_adapter, ProjectedAttentionLayers) else 0,
        saved_by_adapter=saved if has_parameters else (0, 0),
        on_top=(one_adapter.saved_elements_on_top(copies=False), one_adapter.saved_elements_on_top(copies=True)),
        trained=tuple((p.numel(), id(p) in embeddings) for p in parameters if p.requires_grad),
        frozen=sum(p.numel() for p in parameters if not p.requires_grad),
        layer_matrices=sum(p.numel() for p in one_layer.parameters() if p.ndim > 1),
        adapter_matrices=sum(p.numel() for p in one_adapter.parameters() if p.ndim > 1),
        vocabulary=config.vocab_size,
        dropout=config.hidden_dropout_prob > 0,
        shared=sum(p.numel() for p in model.shared_parameters()),
    )


@lru_cache
def optimizer_bytes(shape: ModelShape, optimizer: str) -> int:
    """State on the device. 8-bit: two bytes an element, two maxima a block; embeddings and small tensors in 32 bits."""
    total = 0
    for count, embedding in shape.trained:
        if optimizer == "adamw" or embedding or count < EIGHT_BIT_FROM:
            size = 8 * count
        else:
            size = 2 * count + 8 * ceil_div(count, EIGHT_BIT_BLOCK)
        if optimizer.startswith("paged") and count >= PAGED_FROM:
            size -= (8 if embedding else 2) * count
        total += size
    return total


def saved_by_layer(
    shape: ModelShape, options: StepOptions, batch: int, length: int, *, adapter: bool, queries: int
) -> int:
    """Bytes that one encoder layer and the adapter beside it keep for backward, its output included, its input not."""
    width = options.compute_bytes
    masks = 1 if shape.dropout else 0
    every, asked = batch * length, batch * queries
    D, F = shape.hidden, shape.intermediate
    saved = width * (asked + 2 * every) * D  # query, key, value
    saved += _scores(shape.heads, options, batch, length, queries, masks)
    if options.autocast:  # each linear keeps a copy of its input in the low precision
        saved += width * (asked + 2 * every) * D + width * asked * D
    saved += width * asked * D  # context
    saved += 2 * (
        4 * asked * D + masks * asked * D + 8 * asked
    )  # before each LayerNorm, its statistics, dropout's mask
    if not options.autocast:
        saved += 2 * 4 * asked * D  # after each LayerNorm
    saved += 2 * width * asked * F  # before and after the activation
    if adapter:
        saved += width * asked * shape.saved_by_adapter[options.autocast]
        saved += _saved_by_pal(shape, options, batch, length, queries, masks) if shape.adapter_heads else 0
    return saved


def _saved_by_pal(shape: ModelShape, options: StepOptions, batch: int, length: int, queries: int, masks: int) -> int:
    width = options.compute_bytes
    every, asked = batch * length, batch * queries
    R, heads = shape.adapter_width, shape.adapter_heads
    saved = width * every * shape.hidden if options.autocast else 0  # the copy that `down` keeps
    saved += width * every * R  # down
    padded = round_up(ceil_div(R, heads), HEAD_WIDTH_MULTIPLE) * heads if options.attention == "sdpa" else R
    saved += width * (asked + 2 * every + asked) * padded  # query, key, value, context, padded for the fused kernels
    saved += width * asked * R if padded != R else 0  # the context without the padding
    saved += _scores(heads, options, batch, length, queries, masks)
    return saved + width * asked * shape.hidden  # before the gelu


def _scores(heads: int, options: StepOptions, batch: int, length: int, queries: int, masks: int) -> int:
    if options.attention == "sdpa":
        return 4 * batch * heads * round_up(queries, 32)  # logarithms of sums, one a row
    # Probabilities in float32; after dropout, or in the low precision, once more; dropout's mask.
    again = 2 if options.autocast else 4 * masks
    return batch * heads * queries * length * (4 + again + masks)


@dataclass(frozen=True)
class Estimate:
    """Bytes of one rank at the peak of a step, by category."""

    peak: int
    categories: dict[str, int]


def step_bytes(shape: ModelShape, options: StepOptions, size: PackedSize, *, accumulates: bool = True) -> Estimate:
    """Highest allocation of an optimizer step whose largest micro-batch is (batch, length).

    Args:
        accumulates: the step has several micro-batches, so all gradients are alive while the largest is computed.
    """
    step = _Step(shape, options, size.rows, size.length, accumulates)
    new_gradient = 4 * shape.vocabulary * shape.hidden if accumulates else 0  # of the word embedding
    at_the_embeddings = _Moment(step.embeddings, 0, 2 * step.unit + new_gradient, step.all_gradients)
    worst = max([*step.forward(), *step.backward(), at_the_embeddings], key=sum)
    categories = {
        PARAMETERS: 4 * shape.parameters,
        GRADIENTS: worst.gradients,
        OPTIMIZER: optimizer_bytes(shape, options.optimizer),
        ACTIVATIONS: worst.activations,
        WEIGHT_COPIES: worst.copies,
        TEMPORARIES: worst.temporaries,
    }
    return Estimate(sum(categories.values()), categories)


class _Moment(NamedTuple):
    """What is alive, beside parameters and optimizer state, at a moment that can be the peak."""

    activations: int
    copies: int
    temporaries: int
    gradients: int


class _Step:
    """One micro-batch going through the model."""

    def __init__(self, shape: ModelShape, options: StepOptions, batch: int, length: int, accumulates: bool):
        self.shape, self.options, self.accumulates = shape, options, accumulates
        size, self.last = batch * length, shape.layers - 1
        self.unit = 4 * size * shape.hidden  # one hidden state in float32
        self.masks = size * shape.hidden if shape.dropout else 0
        self.intermediate = options.compute_bytes * size * shape.intermediate
        self.embeddings = self.unit + self.masks + 8 * size + (0 if options.autocast else self.unit)
        self.all_gradients = 4 * shape.trained_parameters
        square = 4 * batch * length * length if options.attention == "eager" else 0
        self.scores = shape.heads * square
        self.adapter_scores = shape.adapter_heads * square if shape.adapter_layers else 0
        elements, depth, heads = shape.on_top[options.autocast]
        self.on_top = options.compute_bytes * size * elements
        self.on_top += _scores(depth * heads, options, batch, length, length, int(shape.dropout))
        self.top_scores = heads * square
        self.saved: list[int] = []
        self.left_by_forward: list[int] = []  # all that a layer saves, or its input alone where it is recomputed
        for layer in range(shape.layers):
            queries = 1 if self.first_only(layer) else length
            adapter = layer in shape.adapter_layers
            self.saved.append(saved_by_layer(shape, options, batch, length, adapter=adapter, queries=queries))
            self.left_by_forward.append(self.unit if self.is_recomputed(layer) else self.saved[-1])
        pal = shape.adapter_heads > 0
        self.saved_by_pal = _saved_by_pal(shape, options, batch, length, length, int(shape.dropout)) if pal else 0

    def first_only(self, layer: int) -> bool:
        return self.shape.first_only and layer == self.last

    def is_recomputed(self, layer: int) -> bool:
        return is_checkpointed(layer, self.options.checkpoint_layers)

    def score_gradients(self, scores: int) -> int:
        """How much of the scores' gradients is alive beyond what backward has let go of by then."""
        return int(scores * (1.5 if self.options.autocast else 1 if self.shape.dropout else 2))

    def forward(self) -> Iterator[_Moment]:
        shape, unit = self.shape, self.unit
        resident = self.all_gradients if self.accumulates else 0
        copies = 2 * (shape.layers * shape.layer_matrices + shape.adapter_matrices) if self.options.autocast else 0
        at_the_end = unit if shape.first_only else (4 if shape.adapter_layers else 3) * unit
        at_the_end += self.score_gradients(self.top_scores)
        yield _Moment(self.embeddings + sum(self.left_by_forward) + self.on_top, copies, at_the_end, resident)
        full = self.last - 1 if shape.first_only and self.last else self.last
        if self.is_recomputed(full):  # it keeps nothing, but what it computes is alive for a while
            running = 3 * unit + max(2 * self.intermediate, 3 * self.scores, 3 * self.adapter_scores)
            yield _Moment(self.embeddings + sum(self.left_by_forward[: full + 1]), copies, running, resident)

    def backward(self) -> Iterator[_Moment]:
        shape, options, unit = self.shape, self.options, self.unit
        a_layer = (self.all_gradients - 4 * shape.vocabulary * shape.hidden) // max(1, shape.layers)
        for layer in range(self.last, -1, -1):
            gradients = self.all_gradients if self.accumulates else (self.last - layer) * a_layer
            below = self.embeddings + sum(self.left_by_forward[:layer]) + (unit if self.is_recomputed(layer) else 0)
            layers_copied = sum(1 for lower in range(layer + 1) if lower == layer or not self.is_recomputed(lower))
            copies = 2 * shape.layer_matrices * layers_copied if options.autocast else 0
            activations = below + self.saved[layer]
            if self.is_recomputed(layer) and not options.autocast:
                activations -= unit  # recomputation stops before the layer's output, which nothing needs
            if self.first_only(layer):
                yield _Moment(activations, copies, (2 if options.autocast else 3) * unit, gradients)
                continue
            if self.is_recomputed(layer) and options.autocast:
                activations += 3 * unit // 2  # float32 results that are still alive
            yield _Moment(activations, copies, max(self._feed_forward(), self._attention()), gradients)
            if layer in shape.adapter_layers and shape.adapter_heads:
                of_adapter = self.score_gradients(self.adapter_scores) + 2 * unit
                yield _Moment(below + self.saved_by_pal, copies, of_adapter, gradients)

    def _feed_forward(self) -> int:
        """Alive beyond what the layer keeps while its feed-forward half goes backward."""
        weight = (6 if self.options.autocast else 4) * self.shape.hidden * self.shape.intermediate
        gradients = 3 * self.unit // 2 if self.options.autocast else 2 * self.unit
        freed = self.unit + self.masks + (0 if self.options.autocast else self.unit)
        return gradients + self.intermediate + weight - freed

    def _attention(self) -> int:
        """The same for the scores; the feed-forward half has been let go of by then."""
        return self.score_gradients(self.scores) - 2 * self.intermediate
