"""What parameters, gradients and optimizer state cost one rank under each strategy: algebra, not measured.

Everything is float32 (autocast makes copies of weights as it needs them), and whole gradients are kept until the step's
one reduction, under every strategy: that is what lets a step be run again, and what ZeRO-2 here has no advantage over
ZeRO-1 for. Sources: pal_dist/distributed; deepspeed/runtime/zero/stage_1_and_2.py, stage3.py; FSDP2's fully_shard.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from pal_dist.distributed.replicated import BUCKET_ELEMENTS
from pal_dist.distributed.strategy import REPLICATED, Strategy, read_strategy
from pal_dist.memory.closed_form import Estimate, ModelShape, StepOptions, optimizer_bytes
from pal_dist.memory.devices import Device
from pal_dist.memory.tracker import GRADIENTS, OPTIMIZER, PARAMETERS

COMMUNICATION = "communication"


@dataclass(frozen=True)
class ShardedBytes:
    """Bytes on the device of one rank, and what crosses to other ranks or the host in a step."""

    parameters: int
    gradients: int
    state: int
    buffers: int
    link_bytes: int
    host_bytes: int


def sharded(shape: ModelShape, options: StepOptions, strategy: str, ranks: int) -> ShardedBytes:
    """The parts of a step's memory that do not depend on the batch."""
    spread = planned_strategy(strategy)
    trained, own = 4 * shape.trained_parameters, 4 * shape.trained_parameters // ranks
    ring = 2 * (ranks - 1) / ranks  # an all-reduce sends each byte about twice; so do its two halves
    if spread.kind == "replicated":
        state = optimizer_bytes(shape, options.optimizer)
        buffer = 4 * reduction_elements(shape) if ranks > 1 else 0
        return ShardedBytes(4 * shape.parameters, trained, state, buffer, int(ring * trained), 0)
    word_embedding = 4 * shape.vocabulary * shape.hidden
    layer = 4 * (shape.layer_matrices + shape.adapter_matrices // max(1, len(shape.adapter_layers)))
    if spread.kind == "fsdp2":
        root = max(0, 4 * shape.parameters - 4 * shape.layers * shape.layer_matrices)  # stays whole during a step
        parameters = 4 * shape.parameters // ranks + root + 2 * 4 * shape.layer_matrices
        return ShardedBytes(parameters, trained + own, 2 * own, 2 * layer, int(1.5 * ring * trained), 0)
    on_host = own if spread.offload else 0
    parameters = 4 * shape.parameters
    if spread.stage == 3:  # what this rank keeps, and the largest module while it is gathered
        parameters = (0 if spread.offload else parameters // ranks) + max(word_embedding, layer)
    copy = 0 if spread.offload else own  # of what this rank updates
    return ShardedBytes(
        parameters=parameters,
        gradients=trained + (0 if spread.offload else own),
        state=copy + (0 if spread.offload else 2 * own),
        buffers=4 * spread.bucket,
        link_bytes=int((1.5 if spread.stage == 3 else 1) * ring * trained),
        host_bytes=2 * on_host,
    )


def reduction_elements(shape: ModelShape) -> int:
    """Elements of the buffer through which replicated ranks begin with one value and sum their gradients: a bucket, or
    all parameters where they are fewer, or the word embedding where it alone is more (distributed/replicated.py)."""
    return max(min(shape.parameters, BUCKET_ELEMENTS), shape.vocabulary * shape.hidden)


@lru_cache
def planned_strategy(name: str) -> Strategy:
    """The strategy of a plan: `single` (one process), a packaged one, or a yaml's path. Raises UserError."""
    return REPLICATED if name == "single" else read_strategy(name)


def with_strategy(
    estimate: Estimate, shape: ModelShape, options: StepOptions, strategy: str, ranks: int, device: Device
) -> Estimate:
    """The same step under a strategy: `estimate` is that of a single rank."""
    parts = sharded(shape, options, strategy, ranks)
    categories = {
        **estimate.categories,
        PARAMETERS: parts.parameters,
        GRADIENTS: max(estimate.categories[GRADIENTS], parts.gradients),
        OPTIMIZER: parts.state,
        COMMUNICATION: parts.buffers + (device.communication if ranks > 1 else 0),
    }
    return Estimate(sum(categories.values()), categories)
