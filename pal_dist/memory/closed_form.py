"""The memory of one optimizer step in microseconds, for the search over plans: what `trace` finds, as arithmetic.

Every term is a tensor that the step keeps or makes; a test holds the sum to the trace on random configurations
(tests/ranks/test_closed_form.py). It knows this project's model alone; `trace` knows any.

Shapes: D hidden, F intermediate, R width of the adapter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import NamedTuple

import torch
from torch import nn

from pal_dist.core.units import ceil_div, round_up
from pal_dist.memory.devices import Device
from pal_dist.memory.trace import PAGED_FROM
from pal_dist.memory.tracker import (
    ACTIVATIONS,
    GRADIENTS,
    OPTIMIZER,
    PARAMETERS,
    TEMPORARIES,
    WEIGHT_COPIES,
    WORKSPACES,
)
from pal_dist.models.adapters.pal import ProjectedAttentionLayers
from pal_dist.models.encoder import is_checkpointed
from pal_dist.models.kernel_choice import USUAL_HEAD
from pal_dist.models.multi_task import MultiTaskBert, MultiTaskBertConfig
from pal_dist.models.packed_kernels import FLASH_BLOCK, HEAD_WIDTH_MULTIPLE, choose_packed_kernel
from pal_dist.models.precision import KernelTarget

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
    saved_by_adapter: int
    """Elements that the adapter keeps for each token and layer, beside a PAL's."""
    on_top: tuple[tuple[int, int, int], tuple[int, int, int]]
    """(elements for each token, layers of attention, heads of each) that the adapter keeps on top of the encoder;
    in float32 and in 16 bits."""
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
    has_flash: bool = True
    """The device has packed flash attention in 16 bits; otherwise it takes memory-efficient attention."""
    graphs: bool = False
    """Micro-batches are replayed as CUDA graphs where they are small enough (data/fixed_sizes.py)."""
    workspaces: int = 0
    """Bytes that the device's library of matrix products works in."""

    def on(self, device: Device) -> StepOptions:
        """The same options on a device."""
        target = KernelTarget("cpu" if device.is_cpu else "cuda", device.capability)
        kernel = choose_packed_kernel(target, dtype=torch.float16, head_width=USUAL_HEAD)
        has_flash = not device.is_cpu and kernel == "flash"
        return replace(self, has_flash=has_flash, workspaces=device.workspaces)

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
    return ModelShape(
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        first_only=config.pooling != "mean" and not one_adapter.reads_all_tokens,
        adapter_layers=frozenset(config.geometry().layers) if has_parameters else frozenset(),
        adapter_width=config.adapter_hidden,
        adapter_heads=config.adapter_heads if isinstance(one_adapter, ProjectedAttentionLayers) else 0,
        saved_by_adapter=one_adapter.saved_elements() if has_parameters else 0,
        on_top=(
            one_adapter.saved_elements_on_top(in_16_bits=False),
            one_adapter.saved_elements_on_top(in_16_bits=True),
        ),
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


def saved_by_layer(shape: ModelShape, options: StepOptions, size: PackedSize, *, adapter: bool, asked: int) -> int:
    """Bytes that one encoder layer and the adapter beside it keep for backward, its output included, its input not.

    Args:
        asked: tokens whose results are wanted: all, or one a row.
    """
    width, masks = options.compute_bytes, 1 if shape.dropout else 0
    D, F, every = shape.hidden, shape.intermediate, size.tokens
    saved = width * (asked + 2 * every) * D  # query, key, value
    saved += width * D * asked if asked != every else 0  # the tokens that ask
    saved += _scores(shape.heads, options, size, asked, masks)
    saved += width * asked * D  # context
    saved += 2 * ((width + masks) * asked * D + 8 * asked)  # dropout's mask; what LayerNorm reads, its statistics
    saved += 2 * width * asked * D  # what LayerNorm gives
    saved += 2 * width * asked * F  # before and after the activation
    if adapter:
        saved += width * asked * shape.saved_by_adapter
        saved += _saved_by_pal(shape, options, size, asked, masks) if shape.adapter_heads else 0
    return saved


def _saved_by_pal(shape: ModelShape, options: StepOptions, size: PackedSize, asked: int, masks: int) -> int:
    width, every = options.compute_bytes, size.tokens
    R, heads = shape.adapter_width, shape.adapter_heads
    saved = width * every * R  # down
    saved += width * asked * R if asked != every else 0
    padded = round_up(ceil_div(R, heads), HEAD_WIDTH_MULTIPLE) * heads
    saved += width * (asked + 2 * every + asked) * padded  # query, key, value, context
    saved += _scores(heads, options, size, asked, masks)
    return saved + width * asked * shape.hidden  # before the gelu


def _scores(heads: int, options: StepOptions, size: PackedSize, asked: int, masks: int) -> int:
    """Bytes that attention keeps beside query, key, value and context."""
    if options.attention == "eager":  # probabilities, and dropout's mask
        return heads * asked * size.length * (options.compute_bytes + masks)
    if options.autocast and options.has_flash:
        return 4 * heads * asked  # logarithms of sums
    return 4 * heads * len(size.lengths) * round_up(1 if asked != size.tokens else size.length, 32)


@dataclass(frozen=True)
class Estimate:
    """Bytes of one rank at the peak of a step, by category."""

    peak: int
    categories: dict[str, int]


def step_bytes(shape: ModelShape, options: StepOptions, size: PackedSize, *, accumulates: bool = True) -> Estimate:
    """Highest allocation of an optimizer step whose largest micro-batch is of this size.

    Args:
        accumulates: the step has several micro-batches, so all gradients are alive while the largest is computed.
    """
    step = _Step(shape, options, size, accumulates)
    worst = max([*step.forward(), *step.backward(), step.at_the_embeddings(), step.at_the_update()], key=sum)
    categories = {
        PARAMETERS: 4 * shape.parameters,
        GRADIENTS: worst.gradients,
        OPTIMIZER: optimizer_bytes(shape, options.optimizer),
        ACTIVATIONS: worst.activations,
        WEIGHT_COPIES: worst.copies,
        WORKSPACES: options.workspaces,
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

    def __init__(self, shape: ModelShape, options: StepOptions, size: PackedSize, accumulates: bool):
        self.shape, self.options, self.size, self.accumulates = shape, options, size, accumulates
        self.last = shape.layers - 1
        width = options.compute_bytes
        self.unit = width * size.tokens * shape.hidden  # one hidden state
        self.mask = size.tokens * shape.hidden if shape.dropout else 0
        self.wide = width * size.tokens * shape.intermediate
        wide_unit = 4 * size.tokens * shape.hidden
        # What LayerNorm reads, its statistics, dropout's mask, what the first layer reads; the batch itself.
        self.embeddings = wide_unit + self.mask + self.unit + (8 + 12) * size.tokens
        self.all_gradients = 4 * shape.trained_parameters
        self.copies = 0
        if options.autocast:
            tasks_matrices = size.tasks * shape.adapter_matrices if shape.adapter_layers else 0
            self.copies = 2 * (shape.layers * shape.layer_matrices + tasks_matrices)
        elements, depth, heads = shape.on_top[options.autocast]
        self.on_top = width * size.tokens * elements
        self.on_top += depth * _scores(heads, options, size, size.tokens, int(shape.dropout)) if depth else 0
        self.saved: list[int] = []
        self.left_by_forward: list[int] = []  # all that a layer saves, or its input alone where it is recomputed
        for layer in range(shape.layers):
            asked = len(size.lengths) if self.first_only(layer) else size.tokens
            adapter = layer in shape.adapter_layers
            self.saved.append(saved_by_layer(shape, options, size, adapter=adapter, asked=asked))
            self.left_by_forward.append(self.unit if self.is_recomputed(layer) else self.saved[-1])

    def first_only(self, layer: int) -> bool:
        return self.shape.first_only and layer == self.last

    def is_recomputed(self, layer: int) -> bool:
        return is_checkpointed(layer, self.options.checkpoint_layers)

    def scores(self, heads: int) -> int:
        """Bytes of one value for each pair of tokens of a row, where attention makes them at all."""
        if self.options.attention != "eager":
            return 0
        return self.options.compute_bytes * heads * self.size.tokens * self.size.length

    def attention_temporaries(self, heads: int, width: int, asked: int) -> int:
        """Alive while attention goes backward, beside what it keeps: gradients of its output, of query, key and value,
        and what the kernel works with."""
        padded = heads * round_up(ceil_div(width, heads), HEAD_WIDTH_MULTIPLE)
        each, of_asked = (self.options.compute_bytes * tokens * padded for tokens in (self.size.tokens, asked))
        if self.options.attention == "eager":
            copies_of_scores = 3 if self.shape.dropout else 2
            return 3 * each + 2 * of_asked + copies_of_scores * self.scores(heads) * asked // self.size.tokens
        in_kernel = 0
        if self.options.autocast and self.options.has_flash:
            rounded = asked + FLASH_BLOCK * len(self.size.lengths)
            in_kernel = 4 * rounded * heads * (round_up(ceil_div(width, heads), 32) + 1)
        return 2 * each + 2 * of_asked + in_kernel

    def forward(self) -> Iterator[_Moment]:
        resident = self.all_gradients if self.accumulates else 0
        activations = self.embeddings + sum(self.left_by_forward) + self.on_top
        yield _Moment(activations, self.copies, 0 if self.shape.first_only else 2 * self.unit, resident)
        full = self.last - 1 if self.shape.first_only and self.last else self.last
        if self.is_recomputed(full):  # it keeps nothing, but what it computes is alive for a while
            running = 3 * self.unit + max(2 * self.wide, 3 * self.scores(self.shape.heads))
            yield _Moment(self.embeddings + sum(self.left_by_forward[: full + 1]), self.copies, running, resident)

    def backward(self) -> Iterator[_Moment]:
        shape, options, unit = self.shape, self.options, self.unit
        a_layer = (self.all_gradients - 4 * shape.vocabulary * shape.hidden) // max(1, shape.layers)
        for layer in range(self.last, -1, -1):
            gradients = self.all_gradients if self.accumulates else (self.last - layer) * a_layer
            below = self.embeddings + sum(self.left_by_forward[:layer]) + (unit if self.is_recomputed(layer) else 0)
            activations = below + self.saved[layer] - unit  # nothing needs its output any more
            asked = len(self.size.lengths) if self.first_only(layer) else self.size.tokens
            of_attention = (
                self.attention_temporaries(shape.heads, shape.hidden, asked) + unit * asked // self.size.tokens
            )
            if self.first_only(layer):
                yield _Moment(activations, self.copies, of_attention, gradients)
                continue
            # Gradients of the residual, of dropout's input, of the activation's output; what LayerNorm read is gone.
            weight = (2 if options.autocast else 4) * shape.hidden * shape.intermediate
            yield _Moment(activations - unit - self.mask, self.copies, 2 * unit + self.wide + weight, gradients)
            attended = activations - 2 * self.wide - 3 * unit - 2 * self.mask
            yield _Moment(attended, self.copies, of_attention, gradients)
            if layer in shape.adapter_layers and shape.adapter_heads:
                of_adapter = self.attention_temporaries(shape.adapter_heads, shape.adapter_width, asked) + 3 * unit
                yield _Moment(activations - 2 * self.wide - unit - self.mask, self.copies, of_adapter, gradients)

    def at_the_embeddings(self) -> _Moment:
        new_gradient = 4 * self.shape.vocabulary * self.shape.hidden if self.accumulates else 0
        wide_unit = 4 * self.size.tokens * self.shape.hidden
        return _Moment(self.embeddings, self.copies, 2 * wide_unit + new_gradient, self.all_gradients)

    def at_the_update(self) -> _Moment:
        return _Moment(0, self.copies, 0, self.all_gradients)
