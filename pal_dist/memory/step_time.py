"""How long a step takes, roughly: a roofline. Every figure from here is an estimate and is called one."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pal_dist.data.fixed_sizes import MOST_TOKENS
from pal_dist.distributed.replicated import BUCKET_ELEMENTS
from pal_dist.memory.closed_form import ModelShape, PackedSize, StepOptions, saved_by_layer
from pal_dist.memory.devices import Device
from pal_dist.memory.sharding import sharded
from pal_dist.models.encoder import is_checkpointed

EFFICIENCY_LOW, EFFICIENCY_FP32 = 0.35, 0.70
"""Estimates: share of the peak that BERT's matrix products reach. NVIDIA's own BERT: 42 to 51 % of a V100 and A100;
simple loops on a T4: 14 to 20 %."""

ACTIVATION_TRAFFIC = 4.0
"""Estimate: times that each kept byte crosses the device's memory in a step."""

LAYER_LAUNCHES, ADAPTER_LAUNCHES = 44, 22
"""Kernels of a layer, and of one task's PAL beside it, forward and backward; other adapters are taken to have as many.
About what an H100 was given (BENCHMARKS.md)."""

PASS_LAUNCHES, HEAD_LAUNCHES, UPDATE_LAUNCHES = 90, 14, 40
"""Kernels of embeddings and pooler, of one task's head and loss, of clipping and update; likewise."""

GRAPH_LAUNCHES = 8
"""What the host launches for a replayed micro-batch: copies to fixed places, zeros for gradients, the graph."""

FILLED = 1.02
"""Tokens that go through the model where sizes are fixed, over those of examples (data/fixed_sizes.py)."""

HOST_WORK = 1.45
"""What the host does in a step over what a bare forward and backward pass of as many kernels takes it: batches,
agreement, clipping, update. Measured beside one H100 (BENCHMARKS.md)."""

MEASURED_SHARE_GPU, MEASURED_SHARE_CPU = 0.5, 0.92
"""Share of the matrix products' measured rate that a step's own products reach: what one H100 showed, and two cores."""

CPU_TRAFFIC, CPU_OPERATION, CPU_UPDATE_BYTES = 17.0, 10e-6, 40
"""On a CPU: times that each kept byte crosses the memory, seconds that an operation costs beside its work, bytes that
an update moves for each parameter (tests/bench/step_time.py)."""

HOST_BANDWIDTH = 12e9
"""Estimate: bytes a second between device and host over PCIe."""

LINK_LATENCY, NETWORK_LATENCY = 2e-6, 10e-6
"""Estimates: seconds from one rank of a ring to the next, within a node and between nodes."""


def matrix_flops(shape: ModelShape, tokens: int, length: float, options: StepOptions) -> float:
    """Floating-point operations of forward and backward over so many tokens; recomputed layers count one forward more.

    Backward costs two forwards where weights are trained, one where gradients only pass through to adapters below, and
    none where nothing below the heads is trained.
    """
    passes = 3 if shape.shared else 2 if shape.adapter_layers else 1
    recomputed = sum(is_checkpointed(layer, options.checkpoint_layers) for layer in range(shape.layers)) / shape.layers
    weights = shape.layers * shape.layer_matrices
    weights += shape.adapter_matrices
    pals = len(shape.adapter_layers) if shape.adapter_heads else 0
    if pals:  # V^E and V^D are tied: one pair, used by every layer
        weights += (pals - 1) * 2 * shape.hidden * shape.adapter_width
    scores = 2 * length * (shape.layers * shape.hidden + pals * shape.adapter_width)
    return 2.0 * tokens * (weights + scores) * (passes + (recomputed if passes > 1 else 0))


def launches(shape: ModelShape, *, tasks: int, micro_batches: float, replayed: bool = False) -> float:
    """About how many kernels the host gives a GPU for one optimizer step.

    Args:
        tasks: whose rows a micro-batch holds.
        replayed: micro-batches are CUDA graphs, each of which is one launch.
    """
    if replayed:
        return micro_batches * GRAPH_LAUNCHES + UPDATE_LAUNCHES
    adapters = ADAPTER_LAUNCHES * tasks * len(shape.adapter_layers)
    a_pass = PASS_LAUNCHES + LAYER_LAUNCHES * shape.layers + adapters + HEAD_LAUNCHES * tasks
    return micro_batches * a_pass + UPDATE_LAUNCHES


def _rate(options: StepOptions, device: Device) -> float:
    """Floating-point operations a second in matrix products."""
    peak = 1e12 * (device.teraflops_low if options.autocast else device.teraflops_fp32)
    if device.is_measured:
        return peak * (MEASURED_SHARE_CPU if device.is_cpu else MEASURED_SHARE_GPU)
    if device.is_cpu:
        return peak
    return peak * (EFFICIENCY_LOW if options.autocast else EFFICIENCY_FP32)


@dataclass(frozen=True)
class StepTime:
    """Estimated seconds of one optimizer step by what they go to. The host launches while the device computes; nothing
    else is taken to overlap."""

    compute: float
    """Forward and backward on the device."""
    launching: float
    """What the host takes to give the device its work, beyond the time in which the device does it: it waits for the
    host where this is not 0."""
    update: float
    exchange: float
    """Between ranks: gradients, under ZeRO and FSDP shares of parameters too."""
    host: float
    """Between device and host memory: paged or offloaded state."""

    @property
    def total(self) -> float:
        return self.compute + self.launching + self.update + self.exchange + self.host


def step_time(
    shape: ModelShape,
    options: StepOptions,
    device: Device,
    *,
    strategy: str,
    gpus: int,
    nodes: int,
    tokens: float,
    length: float,
    micro_batches: float,
    tasks: int,
) -> StepTime:
    """Estimated time of one optimizer step.

    Args:
        gpus: of each node. tokens: of one rank in the step. length: mean length of a sequence. micro_batches: of one
            rank in the step. tasks: whose rows a micro-batch holds.
    """
    parts = sharded(shape, options, strategy, gpus * nodes)
    memory = device.bandwidth * 1e9
    replayed = options.graphs and tokens / micro_batches <= MOST_TOKENS
    tokens *= FILLED if replayed else 1.0
    compute = matrix_flops(shape, int(tokens), length, options) / _rate(options, device)
    activations = _kept(shape, options, tokens, length, tasks)
    count = launches(shape, tasks=tasks, micro_batches=micro_batches, replayed=replayed)
    if device.is_cpu:
        compute += CPU_TRAFFIC * activations / memory + CPU_OPERATION * count
        update, launching = CPU_UPDATE_BYTES * shape.trained_parameters / memory, 0.0
    else:
        compute += ACTIVATION_TRAFFIC * activations / memory
        update = (28 if options.optimizer == "adamw" else 18) * shape.trained_parameters / memory
        launching = max(0.0, HOST_WORK * device.launch * count - compute - update)
    paged = 4 * shape.trained_parameters if options.optimizer.startswith("paged") else 0
    return StepTime(
        compute=compute,
        launching=launching,
        update=update,
        exchange=exchange_seconds(parts.link_bytes, 4 * shape.trained_parameters, device, gpus=gpus, nodes=nodes),
        host=(paged + 4 * parts.host_bytes) / HOST_BANDWIDTH,
    )


def _kept(shape: ModelShape, options: StepOptions, tokens: float, length: float, tasks: int) -> int:
    """Bytes that all layers keep for backward."""
    rows = max(1, round(tokens / length))
    size = PackedSize(rows * round(length), rows, round(length), tasks)
    return shape.layers * saved_by_layer(shape, options, size, adapter=bool(shape.adapter_layers), asked=size.tokens)


def exchange_seconds(sent: int, summed: int, device: Device, *, gpus: int, nodes: int) -> float:
    """Estimated seconds in which one ring over all ranks carries the `sent` bytes of each; `summed`: of what, in bytes.

    A ring leaves each node over its network once and returns once, so its slowest link sets the pace (Patarasuk and
    Yuan 2009, Bandwidth optimal all-reduce algorithms). Each buffer of the sum goes round it twice.
    """
    if gpus * nodes == 1:
        return 0.0
    pace = min(device.link if gpus > 1 else math.inf, device.network if nodes > 1 else math.inf) * 1e9
    crossings = nodes if nodes > 1 else 0
    round_trip = (gpus * nodes - crossings) * LINK_LATENCY + crossings * NETWORK_LATENCY
    return sent / pace + 2 * round_trip * math.ceil(summed / (4 * BUCKET_ELEMENTS))
