"""The verb `profile`: a memory smoke test. Real steps on the worst batch of each task, measured against the plan."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pal_dist.config.schema import RunConfig
from pal_dist.core.atomic_io import write_json
from pal_dist.core.console import say, table
from pal_dist.core.units import MEBIBYTE
from pal_dist.data.batching import MicroBatch
from pal_dist.memory.devices import device_at_hand
from pal_dist.memory.planner import build_for_trace
from pal_dist.memory.plot import plot_memory
from pal_dist.memory.trace import Trace, summarise, trace
from pal_dist.memory.tracker import OPTIMIZER, PARAMETERS, Tracker
from pal_dist.models.multi_task import MultiTaskBert
from pal_dist.optim.optimizers import build_optimizer
from pal_dist.training.setup import set_up
from pal_dist.training.trainer import Trainer
from pal_dist.training.worst_batch import worst_micro_batches

STEPS = 3
"""The first brings the optimizer's state into being, the second is a steady state, the third says the same again."""

CPU_MARGIN, GPU_MARGIN = 0.001, 0.05
"""How far measured and planned may be apart: on a CPU the same tracker follows real tensors; on a GPU the allocator's
own figure may be 5 % above the plan, and 10 % below."""


@dataclass(frozen=True)
class Profile:
    """What was measured and what was planned, in bytes of one rank."""

    measured: int
    planned: Trace
    agrees: bool
    files: tuple[Path, ...]


def profile(run: RunConfig, origins: dict[str, str], *, cache_dir: Path, force_tokens: int | None = None) -> Profile:
    """Run the smoke test in the run's folder. Raises UserError as `train` does.

    `force_tokens`: run micro-batches of so many tokens, whatever was planned: a proof that the test can fail.
    """
    run = replace(
        run, memory=replace(run.memory, memory="plan_only" if run.memory.memory == "auto" else run.memory.memory)
    )
    trainer = set_up(run, origins, cache_dir=cache_dir)
    try:
        planned, budget = plan_of(trainer), trainer.state.tokens_per_micro_batch
        if force_tokens is not None:
            trainer.state.tokens_per_micro_batch = max(force_tokens, run.data.max_length)
            trainer.report.lines(f"forced: micro-batches of {force_tokens:,} tokens, planned were {budget:,}")
        on_gpu = trainer.engine.device.type == "cuda"
        measured, seen, files = (_measure_on_gpu if on_gpu else _measure_on_cpu)(trainer)
        low, high = (-0.10, GPU_MARGIN) if on_gpu else (-CPU_MARGIN, CPU_MARGIN)
        agrees = low <= measured / planned.peak - 1 <= high
        agrees = min(trainer.engine.gather(agrees))
        if trainer.engine.is_main:
            files = [*files, *_write(trainer, seen or planned, planned, measured)]
            say(_text(measured, seen or planned, planned, agrees))
        trainer.report.close()
        trainer.engine.close()
    finally:
        trainer.engine.release()
    return Profile(measured, planned, agrees, tuple(files))


def worst_step(trainer: Trainer) -> list[MicroBatch]:
    """The worst micro-batch of each task, largest last."""
    rows = -(-trainer.run.batch.batch_size // trainer.engine.ranks)
    return worst_micro_batches(
        trainer.schedule.lengths, tokens=trainer.state.tokens_per_micro_batch, rows=rows, padded=trainer.engine.padded
    )


def plan_of(trainer: Trainer) -> Trace:
    """The trace of that very step, on fake tensors."""
    run, engine, model = trainer.run, trainer.engine, trainer.engine.model
    assert isinstance(model, MultiTaskBert)
    batches = [
        trainer.train[micro.task].batch(
            trainer.tasks[micro.task].name, micro.rows, padding_id=trainer.padding_id, multiple=engine.multiple
        )
        for micro in worst_step(trainer)
    ]
    objectives = {task.name: task.objective for task in trainer.tasks}
    device = device_at_hand(engine.hardware())
    return trace(
        lambda: build_for_trace(run, model.config, trainer.state.checkpoint_layers),
        batches,
        loss=lambda logits, batch: objectives[batch.task].loss(logits.float(), batch.labels_B),
        optimizer=lambda module: build_optimizer(module, run.optimizer, trainer.peak_rate),
        device=None if device.is_cpu else device,
        precision=engine.precision.name,
        max_norm=run.optimizer.max_gradient_norm or None,
        replay=False,
    )


def _step(trainer: Trainer, phase: Any = lambda _: None) -> None:
    """One step on the worst batches, as training runs it; learning rate 0, so that the model stays what it was."""
    engine = trainer.engine
    engine.seed(trainer.run.train.seed, 0)
    engine.checkpoint_layers(trainer.state.checkpoint_layers)
    for micro in worst_step(trainer):
        phase("forward")
        loss_sum = trainer.forward(micro)[1]
        phase("backward")
        engine.backward(loss_sum, 1)
        del loss_sum
    phase("optimizer step")
    engine.step(rate=0.0, max_norm=trainer.run.optimizer.max_gradient_norm)


def _measure_on_cpu(trainer: Trainer) -> tuple[int, Trace | None, list[Path]]:
    """Follow real tensors with the tracker."""
    engine = trainer.engine
    engine.model.train()
    _step(trainer)  # the optimizer's state comes into being
    tracker = Tracker(engine.model, granularity=1)
    phases: list[tuple[int, str]] = []
    with tracker:
        tracker.mark(engine.model.parameters(), PARAMETERS)
        tracker.mark(engine.model.buffers(), PARAMETERS)
        for entries in engine.optimizer.state.values():
            tracker.mark((value for value in entries.values() if isinstance(value, Tensor)), OPTIMIZER)
        for number in range(STEPS - 1):
            start, resident = len(tracker.events), tracker.bytes
            phases.clear()
            _step(trainer, lambda name: phases.append((len(tracker.events), name)))
            say(f"step {number + 2}: {tracker.peak / MEBIBYTE:,.1f} MiB at the peak")
    seen = summarise(tracker, start, resident, phases)
    return seen.peak, seen, []


def _measure_on_gpu(trainer: Trainer) -> tuple[int, Trace | None, list[Path]]:
    """The allocator's own figures, and its history for https://pytorch.org/memory_viz."""
    engine, folder = trainer.engine, trainer.folder
    engine.model.train()
    _step(trainer)
    snapshot = folder / f"memory_snapshot_rank{engine.rank}.pickle"
    torch.cuda.memory._record_memory_history(max_entries=200_000)
    for number in range(STEPS - 1):
        engine.reset_memory()
        _step(trainer)
        allocated, reserved = engine.memory() / MEBIBYTE, engine.reserved_memory() / MEBIBYTE
        say(f"step {number + 2}: {allocated:,.1f} MiB allocated, {reserved:,.1f} reserved")
    torch.cuda.memory._dump_snapshot(str(snapshot))
    torch.cuda.memory._record_memory_history(enabled=None)
    return engine.memory(), None, [snapshot]


def _write(trainer: Trainer, seen: Trace, planned: Trace, measured: int) -> Iterator[Path]:
    from PIL import Image

    folder = trainer.folder
    picture = plot_memory(seen.timeline, f"memory of one step: {trainer.run.model.model}, worst batch of each task")
    Image.fromarray(picture).save(folder / "memory.png")
    yield folder / "memory.png"
    trainer.report.picture("memory/step", picture)
    record = {"measured_peak": measured, "planned_peak": planned.peak, "planned": planned.categories,
              "measured": seen.categories, "modules": seen.modules, "at": seen.at}  # fmt: skip
    write_json(folder / "profile.json", record)
    yield folder / "profile.json"


def _text(measured: int, seen: Trace, planned: Trace, agrees: bool) -> str:
    rows = [[name, f"{size / MEBIBYTE:,.1f}", f"{planned.categories[name] / MEBIBYTE:,.1f}"]
            for name, size in seen.categories.items()]  # fmt: skip
    rows.append(["peak", f"{measured / MEBIBYTE:,.1f}", f"{planned.peak / MEBIBYTE:,.1f}"])
    modules = [[name, f"{size / MEBIBYTE:,.1f}"] for name, size in list(seen.modules.items())[:8]]
    verdict = "agrees with the plan" if agrees else "DIFFERS from the plan"
    return "\n".join([
        table(["MiB at the peak", "measured", "planned"], rows),
        "", table(["largest activations", "MiB"], modules),
        "", f"measured {verdict}: {measured / planned.peak - 1:+.2%}",
    ])  # fmt: skip
