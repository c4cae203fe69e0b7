"""A run made to fit: its plan taken, proved with the worst batches, corrected by what was seen, and written down."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from pal_dist.config.schema import UNPLANNED_TOKENS, RunConfig
from pal_dist.core.atomic_io import write_json
from pal_dist.core.units import gib
from pal_dist.data.batching import MICRO_BATCH_COST, MicroBatch, Schedule
from pal_dist.distributed.engine import Engine
from pal_dist.distributed.strategy import packaged_name
from pal_dist.memory.closed_form import optimizer_bytes
from pal_dist.memory.devices import device_at_hand
from pal_dist.memory.planner import PlannedRun, as_record, plan_run
from pal_dist.memory.search import largest_that_fits
from pal_dist.models.multi_task import MultiTaskBert
from pal_dist.training.run_state import RunState
from pal_dist.training.trainer import Trainer
from pal_dist.training.worst_batch import ProofResult, probe

TIGHT = 0.5
"""Share of a CPU's free memory from which a plan is proved; a GPU's always is, for it takes no time."""


def plan_memory(run: RunConfig, model: MultiTaskBert, engine: Engine, schedule: Schedule) -> PlannedRun | None:
    """The plan for the device at hand; None with `--memory off`. Raises DoesNotFitError on every rank."""
    if run.memory.memory == "off":
        return None
    devices = engine.gather(device_at_hand(engine.hardware()))
    least = min(devices, key=lambda device: device.usable)  # every rank runs the plan of the smallest
    return plan_run(
        run, model.config, least, strategy=packaged_name(engine.strategy), precision=engine.precision.name,
        ranks=engine.ranks, multiple=engine.multiple, sampling=schedule.sampling, lengths=schedule.lengths,
    )  # fmt: skip


def device_label(engine: Engine) -> str:
    """What a token budget is good for: the kind of device and the number of ranks."""
    return f"{engine.ranks} x {engine.hardware().name}"


def apply_plan(state: RunState, run: RunConfig, planned: PlannedRun | None, engine: Engine) -> None:
    """Set how the run cuts its steps: as asked, else as before on the same devices, else as planned."""
    place = device_label(engine)
    if state.planned_for != place:
        state.tokens_per_micro_batch = planned.plan.tokens if planned else UNPLANNED_TOKENS
        state.checkpoint_layers = planned.plan.options.checkpoint_layers if planned else 0
        state.micro_batch_cost = planned.plan.micro_batch_cost if planned else MICRO_BATCH_COST
        state.planned_for = place
    if run.memory.tokens_per_micro_batch is not None:
        state.tokens_per_micro_batch = run.memory.tokens_per_micro_batch
    if run.memory.checkpoint_layers is not None:
        state.checkpoint_layers = run.memory.checkpoint_layers


def use_one_micro_batch_per_task(state: RunState, engine: Engine, schedule: Schedule) -> None:
    """Let a task's examples of a step be one micro-batch, however long their texts: only features go to the heads."""
    longest = max(engine.padded(int(lengths.max())) for lengths in schedule.lengths)
    state.tokens_per_micro_batch = schedule.sampling.examples_per_step * longest
    state.micro_batch_cost = max(MICRO_BATCH_COST, state.tokens_per_micro_batch)  # cutting saves no padding


def prove(trainer: Trainer, planned: PlannedRun | None) -> list[str]:
    """Run the worst batches where memory is tight, write plan and evidence beside the run; what to tell the person."""
    run, engine, state = trainer.run, trainer.engine, trainer.state
    if planned is None:
        return [f"memory: not planned (--memory off); micro-batches of at most {state.tokens_per_micro_batch:,} tokens"]
    plan, device, evidence = planned.plan, planned.plan.machine.device, None
    tight = not device.is_cpu or plan.needed > TIGHT * device.usable
    if run.memory.memory == "auto" and tight:
        evidence = _probe(trainer, planned)
        seen = max(engine.gather(evidence.allocated))
        changed = largest_that_fits(replace(plan, correction=seen / plan.estimate.peak)).tokens
        free = run.memory.tokens_per_micro_batch is None and state.step == 0 and not device.is_cpu
        if free and changed != plan.tokens and state.tokens_per_micro_batch == plan.tokens:
            state.tokens_per_micro_batch = changed
            evidence = _probe(trainer, planned)
    if engine.is_main:
        record: dict[str, Any] = {"plan": as_record(planned), "tokens_per_micro_batch": state.tokens_per_micro_batch}
        record |= {"checkpoint_layers": state.checkpoint_layers, "evidence": asdict(evidence) if evidence else None}
        write_json(trainer.folder / "memory.json", record)
    return _lines(trainer, planned, evidence)


def _probe(trainer: Trainer, planned: PlannedRun) -> ProofResult:
    engine, work = trainer.engine, planned.plan.work
    engine.model.train()
    state_bytes = 0 if engine.optimizer.state else optimizer_bytes(work.shape, trainer.run.optimizer.optimizer)

    def run(micro: MicroBatch) -> Any:
        engine.checkpoint_layers(trainer.state.checkpoint_layers)
        return trainer.forward(micro)[1]

    return probe(engine, trainer.guard, run, trainer.schedule.lengths, rows=work.rows, state_bytes=state_bytes)


def _lines(trainer: Trainer, planned: PlannedRun, evidence: ProofResult | None) -> list[str]:
    plan, state = planned.plan, trainer.state
    device = plan.machine.device
    checkpointing = {0: "no checkpointing", 1: "every layer checkpointed"}.get(
        state.checkpoint_layers, f"every {state.checkpoint_layers}th layer checkpointed"
    )
    lines = [
        f"memory: planned {gib(plan.estimate.peak)} ({gib(plan.needed)} with margin) of "
        f"{gib(device.usable)} usable on {device.name}; micro-batches of at most "
        f"{state.tokens_per_micro_batch:,} tokens, {checkpointing}"
    ]
    if evidence:
        rows, length = max(
            ((rows, length) for _, rows, length in evidence.micro_batches), key=lambda pair: pair[0] * pair[1]
        )
        lines.append(
            f"memory: proved with the worst batch of each task ({rows} x {length} tokens at most): "
            f"{gib(evidence.allocated)} allocated, {gib(evidence.reserved)} reserved"
        )
    return lines
