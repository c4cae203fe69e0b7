"""How long a step takes, roughly: a roofline. Every figure from here is an estimate and is called one."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pal_dist.distributed.replicated import BUCKET_ELEMENTS
from pal_dist.memory.closed_form import ModelShape, StepOptions, saved_by_layer
from pal_dist.memory.devices import Device
from pal_dist.memory.sharding import sharded
from pal_dist.models.encoder import is_checkpointed

EFFICIENCY_LOW, EFFICIENCY_FP32 = 0.35, 0.70
"""Estimates: share of the peak that BERT's matrix products reach. NVIDIA's own BERT: 42 to 51 % of a V100 and A100;
simple loops on a T4: 14 to 20 %."""

ACTIVATION_TRAFFIC = 4.0
"""Estimate: times that each kept byte crosses the device's memory in a step."""

KERNELS_PER_LAYER, LAUNCH_SECONDS = 70, 6e-6
"""Estimates: kernels of a layer, forward and backward, and what starting one costs."""

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


def _rate(options: StepOptions, device: Device) -> float:
    """Floating-point operations a second in matrix products."""
    if device.is_cpu:
        return device.teraflops_fp32 * 1e12
    if options.autocast:
        return device.teraflops_low * 1e12 * EFFICIENCY_LOW
    return device.teraflops_fp32 * 1e12 * EFFICIENCY_FP32


@dataclass(frozen=True)
class StepTime:
    """Estimated seconds of one optimizer step by what they go to; nothing is taken to overlap."""

    compute: float
    """Forward and backward."""
    update: float
    exchange: float
    """Between ranks: gradients, under ZeRO and FSDP shares of parameters too."""
    host: float
    """Between device and host memory: paged or offloaded state."""

    @property
    def total(self) -> float:
        return self.compute + self.update + self.exchange + self.host


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
            rank in the step.
    """
    batch = max(1, round(tokens / length))
    saved = saved_by_layer(
        shape, options, batch, round(length), adapter=bool(shape.adapter_layers), queries=round(length)
    )
    memory = device.bandwidth * 1e9
    parts = sharded(shape, options, strategy, gpus * nodes)
    compute = matrix_flops(shape, int(tokens), length, options) / _rate(options, device)
    compute += ACTIVATION_TRAFFIC * saved * shape.layers / memory
    compute += micro_batches * shape.layers * KERNELS_PER_LAYER * LAUNCH_SECONDS * (0 if device.is_cpu else 1)
    optimizer_traffic = 28 if options.optimizer == "adamw" else 18
    paged = 4 * shape.trained_parameters if options.optimizer.startswith("paged") else 0
    return StepTime(
        compute=compute,
        update=optimizer_traffic * shape.trained_parameters / memory,
        exchange=exchange_seconds(parts.link_bytes, 4 * shape.trained_parameters, device, gpus=gpus, nodes=nodes),
        host=(paged + 4 * parts.host_bytes) / HOST_BANDWIDTH,
    )


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
