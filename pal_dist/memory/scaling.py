"""The same run on more and more GPUs, on paper: what a step's time goes to, and what of each GPU is put to use.

Everything here is an estimate from a small model: compute by a roofline (step_time.py), one ring that sums gradients,
the host's work for a batch, and checkpoints. Nothing is taken to overlap, so real runs should do no worse where the
assumptions hold. Weak scaling: each GPU keeps its share of the batch. Strong: one batch is shared by all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from pal_dist.core.units import ceil_div
from pal_dist.memory.search import Machine, Plan

WAITING = 1.025
"""Measured on simulated schedules of 512 ranks: the most tokens of a rank over the mean (tests/bench/scale.py)."""

PACKING_ALONE, PACKING, PADDING = 6e-6, 0.3e-6, 20e-9
"""Seconds to cut a step into micro-batches, per example of the whole step, for one rank and for several, and to write
them, per token of the rank. Measured on one core before micro-batches were packed; tests/bench/scale.py gives 0.8e-6
for one rank today, 0.1e-6 to 3e-6 for several (fewer ranks, more for each), and 40e-9."""

STORAGE, CHECKPOINT_STEPS = 1e9, 1000
"""Assumptions: bytes a second that all ranks together write to the shared file system; steps between checkpoints."""

STATE_BYTES = 12
"""Of a parameter and AdamW's two moments in a checkpoint."""


@dataclass(frozen=True)
class ScalingPoint:
    """One step on so many GPUs, in estimated seconds."""

    gpus: int
    nodes: int
    examples: int
    """Of all tasks and GPUs in a step."""
    compute: float
    """Forward, backward, update and waiting for the slowest rank."""
    all_reduce: float
    input: float
    checkpoint: float
    """Of one step's share in writing checkpoints."""

    @property
    def seconds(self) -> float:
        return self.compute + self.all_reduce + self.input + self.checkpoint

    @property
    def examples_per_second(self) -> float:
        return self.examples / self.seconds

    def efficiency(self, alone: ScalingPoint) -> float:
        """Examples a second of each GPU over those of one GPU alone."""
        return self.examples_per_second / self.gpus / alone.examples_per_second


def scaled(plan: Plan) -> ScalingPoint:
    """The plan's own step."""
    work, machine, time = plan.work, plan.machine, plan.time
    slowest = WAITING if machine.ranks > 1 else 1.0
    packing = PACKING if machine.ranks > 1 else PACKING_ALONE
    return ScalingPoint(
        gpus=machine.ranks,
        nodes=machine.nodes,
        examples=work.examples,
        compute=(time.compute + time.launching) * slowest + time.update + time.host,
        all_reduce=time.exchange,
        input=packing * work.examples + PADDING * plan.rank_examples * work.mean_length,
        checkpoint=STATE_BYTES * work.shape.parameters / STORAGE / CHECKPOINT_STEPS,
    )


def machines(machine: Machine) -> list[Machine]:
    """From one GPU to the machine, doubling: first within a node, then nodes."""
    inner = [replace(machine, gpus=1 << power, nodes=1) for power in range((machine.gpus - 1).bit_length())]
    outer = [replace(machine, nodes=1 << power) for power in range((machine.nodes - 1).bit_length())]
    return [*inner, *outer, machine]


def weak(plan: Plan) -> list[ScalingPoint]:
    """From one GPU to the plan's machine; every GPU has as many examples as under the plan."""
    return [scaled(_resized(plan, machine, _share(plan, machine))) for machine in machines(plan.machine)]


def strong(plan: Plan) -> list[ScalingPoint]:
    """From one GPU to the plan's machine; all share the plan's batch, whose micro-batches stay as large."""
    return [scaled(_resized(plan, machine, plan.work.examples)) for machine in machines(plan.machine)]


def _share(plan: Plan, machine: Machine) -> int:
    return max(1, round(plan.rank_examples * machine.ranks))


def _resized(plan: Plan, machine: Machine, examples: int) -> Plan:
    work = plan.work
    rows = (ceil_div(examples, work.tasks_in_step * machine.ranks),) * len(work.rows)
    most = (max(rows) if work.one_task else sum(rows)) * work.longest
    return replace(plan, machine=machine, work=replace(work, examples=examples, rows=rows, most_tokens=most))
