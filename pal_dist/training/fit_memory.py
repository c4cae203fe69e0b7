"""A run made to fit: its plan applied, proved with the worst batches, corrected by what was seen, and written down."""

from __future__ import annotations

from dataclasses import asdict, replace

from pal_dist.config.schema import RunConfig
from pal_dist.core.atomic_io import write_json
from pal_dist.core.console import duration
from pal_dist.core.units import gib
from pal_dist.data.batching import Schedule
from pal_dist.distributed.engine import Engine
from pal_dist.distributed.strategy import packaged_name
from pal_dist.memory.closed_form import optimizer_bytes
from pal_dist.memory.devices import device_at_hand
from pal_dist.memory.planner import PlannedRun, as_record, plan_run, speed_source, speed_text
from pal_dist.memory.search import largest_that_fits
from pal_dist.memory.speed_probe import with_measured_speed
from pal_dist.models.multi_task import MultiTaskBert
from pal_dist.monitoring import run_files
from pal_dist.training.run import Run
from pal_dist.training.run_state import RunState
from pal_dist.training.worst_batch import ProofResult, run_worst_step

PROVE_FROM = 0.5
"""Share of a CPU's free memory from which a plan is proved; a GPU's always is, for it takes no time."""


MEASURE_FROM = 100
"""Steps of a run from which the device's speed is measured before it, which takes about a second."""


def plan_memory(
    config: RunConfig, model: MultiTaskBert, engine: Engine, schedule: Schedule, *, steps: int
) -> PlannedRun | None:
    """The plan for the device at hand; None with `--memory off`. Raises DoesNotFitError on every rank.

    Args:
        steps: of the run. Its device's speed is measured where they are so many that a second does not count.
    """
    if config.memory.memory == "off":
        return None
    own = device_at_hand(engine.hardware())
    if steps >= MEASURE_FROM:
        own = with_measured_speed(own, engine.device)
    devices = engine.gather(own)
    smallest = min(devices, key=lambda device: device.usable)  # every rank runs the plan of the smallest
    return plan_run(
        config,
        model.config,
        smallest,
        strategy=packaged_name(engine.strategy),
        precision=engine.precision.name,
        ranks=engine.ranks,
        sampling=schedule.sampling,
        lengths=schedule.lengths,
    )


def apply_plan(state: RunState, config: RunConfig, planned: PlannedRun | None, engine: Engine) -> None:
    """Set how the run cuts its steps: as asked, else as before on the same devices, else as planned."""
    devices = f"{engine.ranks} x {engine.hardware().name}"
    if state.planned_for != devices:
        state.tokens_per_micro_batch = planned.plan.tokens if planned else config.memory.token_budget
        state.checkpoint_layers = planned.plan.options.checkpoint_layers if planned else 0
        state.planned_for = devices
    if config.memory.tokens_per_micro_batch is not None:
        state.tokens_per_micro_batch = config.memory.tokens_per_micro_batch
    if config.memory.checkpoint_layers is not None:
        state.checkpoint_layers = config.memory.checkpoint_layers


def use_one_micro_batch(state: RunState, schedule: Schedule) -> None:
    """Let a step's examples be one micro-batch, however long their texts: only features go to the heads."""
    longest = max(int(lengths.max()) for lengths in schedule.lengths)
    state.tokens_per_micro_batch = schedule.sampling.examples_per_step * longest


def prove_plan(run: Run) -> list[str]:
    """Run the worst batches where memory is tight, write plan and proof beside the run; the lines for the person."""
    if run.plan is None:
        return [f"memory: not planned (--memory off); {_limit(run.state)}"]
    plan, memory = run.plan.plan, run.config.memory
    device, proof = plan.machine.device, None
    tight = not device.is_cpu or plan.needed > PROVE_FROM * device.usable
    if memory.memory == "auto" and tight:
        proof = _prove(run, run.plan)
        measured = max(run.engine.gather(proof.allocated))
        corrected = largest_that_fits(replace(plan, correction=measured / plan.estimate.peak)).tokens
        free = memory.tokens_per_micro_batch is None and run.state.step == 0 and not device.is_cpu
        if free and corrected != plan.tokens and run.state.tokens_per_micro_batch == plan.tokens:
            run.state.tokens_per_micro_batch = corrected
            proof = _prove(run, run.plan)
    if run.engine.is_main:
        record = {
            "plan": as_record(run.plan),
            "tokens_per_micro_batch": run.state.tokens_per_micro_batch,
            "checkpoint_layers": run.state.checkpoint_layers,
            "evidence": asdict(proof) if proof else None,
        }
        write_json(run.folder / run_files.MEMORY, record)
    return _lines(run, run.plan, proof)


def _prove(run: Run, planned: PlannedRun) -> ProofResult:
    """What does not exist yet has its place held: the optimizer's state, the graphs' pool."""
    work, optimizer = planned.plan.work, run.config.optimizer.optimizer
    missing_state = 0 if run.engine.optimizer.state else optimizer_bytes(work.shape, optimizer)
    return run_worst_step(run, held_bytes=missing_state + planned.plan.graph_bytes)


def _limit(state: RunState) -> str:
    return f"micro-batches of at most {state.tokens_per_micro_batch:,} tokens"


def _lines(run: Run, planned: PlannedRun, proof: ProofResult | None) -> list[str]:
    state, plan, device = run.state, planned.plan, planned.plan.machine.device
    checkpointing = {0: "no checkpointing", 1: "every layer checkpointed"}.get(
        state.checkpoint_layers, f"every {state.checkpoint_layers}th layer checkpointed"
    )
    lines = [
        f"memory: planned {gib(plan.estimate.peak)} ({gib(plan.needed)} with margin) of {gib(device.usable)} usable on "
        f"{device.name}; {_limit(state)}, {checkpointing}"
    ]
    if device.is_measured:
        steps = run.total_steps - state.step
        lines.append(
            f"speed: {speed_text(plan)} ({speed_source(plan)}); the run's {steps:,} steps take about "
            f"{duration(steps * plan.seconds)}, evaluation not counted"
        )
    if proof:
        examples, tokens = max(proof.micro_batches, key=lambda size: size[1])
        lines.append(
            f"memory: proved with the largest micro-batch ({examples:,} examples, {tokens:,} tokens): "
            f"{gib(proof.allocated)} allocated, {gib(proof.reserved)} reserved"
        )
    return lines
