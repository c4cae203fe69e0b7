"""What parameters, gradients and optimizer state cost one rank under each strategy: algebra, not measured.

Ours (`single`, `ddp`): float32 parameters, autocast, one buffer for the sum over ranks. DeepSpeed's ZeRO: in fp16 and
bf16 parameters and gradients of two bytes, and float32 copies of what a rank owns; buckets sized for BERT.
Sources: deepspeed/runtime/zero/stage_1_and_2.py, stage3.py; https://www.deepspeed.ai/docs/config-json/.
"""

from __future__ import annotations

from dataclasses import dataclass

from pal_dist.memory.closed_form import Estimate, Levers, Shape, optimizer_bytes
from pal_dist.memory.devices import Device
from pal_dist.memory.tracker import GRADIENTS, OPTIMIZER, PARAMETERS, WEIGHT_COPIES

REDUCTION_BUFFER = 128 * 1024 * 1024
"""Bytes of the buffer through which gradients are summed over ranks (engine.py)."""

BUCKET = 25_000_000
"""Elements of a ZeRO bucket: 50 MB in half precision. DeepSpeed's default, 500 million, is as large as BERT's state."""

COMMUNICATION = "communication"

STRATEGIES = ("single", "ddp", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload")


@dataclass(frozen=True)
class Sharded:
    """Bytes on the device of one rank, and what crosses to other ranks or the host in a step."""

    parameters: int
    gradients: int
    state: int
    buffers: int
    link_bytes: int
    host_bytes: int


def sharded(shape: Shape, levers: Levers, strategy: str, ranks: int) -> Sharded:
    """The parts of a step's memory that do not depend on the batch."""
    trained, width = shape.trained_parameters, 2 if levers.autocast else 4
    ring = 2 * (ranks - 1) / ranks  # an all-reduce sends each byte about twice
    if strategy in ("single", "ddp"):
        state = optimizer_bytes(shape, levers.optimizer)
        buffer = min(4 * trained, REDUCTION_BUFFER) if ranks > 1 else 0
        return Sharded(4 * shape.parameters, 4 * trained, state, buffer, int(ring * 4 * trained), 0)
    stage, offload = int(strategy[4]), strategy.endswith("offload")
    own = trained / ranks
    state = 0 if offload else int(own * (4 + 8))  # the rank's float32 copy and AdamW's two moments
    gradients = width * (trained if stage == 1 else own)
    parameters = width * (shape.parameters / ranks if stage == 3 else shape.parameters)
    buffers = (2 if stage < 3 else 4) * BUCKET * width  # reduce, overlapped; stage 3 also gathers and prefetches
    if stage == 3:
        buffers += 2 * width * shape.layer_matrices
    traffic = ring * width * trained * (1.5 if stage == 3 else 1)
    return Sharded(
        int(parameters), int(gradients), state, buffers, int(traffic),
        int(own * (width + 4)) if offload else 0,
    )  # fmt: skip


def with_strategy(
    estimate: Estimate, shape: Shape, levers: Levers, strategy: str, ranks: int, device: Device
) -> Estimate:
    """The same step under a strategy: `estimate` is that of a single rank."""
    parts = sharded(shape, levers, strategy, ranks)
    zero = strategy.startswith("zero")
    categories = {
        **estimate.categories,
        PARAMETERS: parts.parameters,
        GRADIENTS: max(estimate.categories[GRADIENTS], parts.gradients) if not zero else parts.gradients,
        OPTIMIZER: parts.state,
        WEIGHT_COPIES: 0 if zero else estimate.categories[WEIGHT_COPIES],
        COMMUNICATION: parts.buffers + (device.communication if ranks > 1 else 0),
    }
    return Estimate(sum(categories.values()), categories)
