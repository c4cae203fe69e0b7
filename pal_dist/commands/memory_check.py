"""The verb `profile`: a memory smoke test. Real steps on the largest micro-batch, measured against the plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from pal_dist.config.schema import RunConfig
from pal_dist.core.atomic_io import write_json
from pal_dist.core.console import say, table
from pal_dist.core.extras import cure, has_library
from pal_dist.core.units import gib
from pal_dist.memory.devices import device_at_hand
from pal_dist.memory.planner import build_for_trace, loss_of_segments
from pal_dist.memory.plot import plot_memory
from pal_dist.memory.trace import Trace, summarise, trace
from pal_dist.memory.tracker import OPTIMIZER, PARAMETERS, Tracker
from pal_dist.monitoring import run_files
from pal_dist.optim.optimizers import build_optimizer
from pal_dist.training.run import Run
from pal_dist.training.setup import set_up
from pal_dist.training.worst_batch import worst_step

STEPS = 3
"""The first brings the optimizer's state into being, the second is a steady state, the third says the same again."""

CPU_MARGIN, GPU_MARGIN = 0.001, 0.05
"""How far measured and planned may be apart: on a CPU the same tracker follows real tensors; on a GPU the allocator's
own figure may be 5 % above the plan, and 10 % below."""

LARGEST_MODULES = 8
"""Modules whose activations are listed."""


@dataclass(frozen=True)
class MemoryCheck:
    """What was measured and what was planned, in bytes of one rank."""

    measured: int
    planned: Trace
    agrees: bool
    files: tuple[Path, ...]


def check_memory(
    config: RunConfig, origins: dict[str, str], *, cache_dir: Path, force_tokens: int | None = None
) -> MemoryCheck:
    """Run the smoke test in the run's folder. Raises UserError as `train` does.

    Args:
        force_tokens: run micro-batches of so many tokens, whatever was planned: a proof that the test can fail.
    """
    if config.memory.memory == "auto":
        config = replace(config, memory=replace(config.memory, memory="plan_only"))
    run = set_up(config, origins, cache_dir=cache_dir)
    try:
        planned = trace_worst_step(run)
        if force_tokens is not None:
            budget = run.state.tokens_per_micro_batch
            run.state.tokens_per_micro_batch = max(force_tokens, config.data.max_length)
            run.report.say(f"forced: micro-batches of {force_tokens:,} tokens, planned were {budget:,}")
        on_gpu = run.engine.device.type == "cuda"
        measured, measured_trace, files = (_measure_on_gpu if on_gpu else _measure_on_cpu)(run)
        low, high = (-0.10, GPU_MARGIN) if on_gpu else (-CPU_MARGIN, CPU_MARGIN)
        agrees = min(run.engine.gather(low <= measured / planned.peak - 1 <= high))
        if run.engine.is_main:
            files = [*files, *_write(run, measured_trace or planned, planned, measured)]
            say(_text(measured, measured_trace or planned, planned, agrees))
        run.close()
    finally:
        run.engine.release_run_folder()
    return MemoryCheck(measured, planned, agrees, tuple(files))


def trace_worst_step(run: Run) -> Trace:
    """The trace of that very step, on fake tensors."""
    config, engine = run.config, run.engine
    objectives = {task.name: task.objective for task in run.tasks}
    device = device_at_hand(engine.hardware())
    return trace(
        lambda: build_for_trace(config, run.model.config, run.state.checkpoint_layers),
        [run.batch(micro) for micro in worst_step(run)],
        loss=loss_of_segments(objectives),
        optimizer=lambda module: build_optimizer(module, config.optimizer, run.peak_rate),
        device=None if device.is_cpu else device,
        precision=engine.precision.name,
        max_norm=config.optimizer.max_gradient_norm or None,
        replay=False,
    )


def _run_worst_step(run: Run, enter: Callable[[str], object] = lambda _: None) -> None:
    """One step on the worst batches, as training runs it; learning rate 0, so that the model stays what it was.

    Args:
        enter: told the name of each phase as it begins.
    """
    engine = run.engine
    engine.set_seed(run.config.train.seed, 0)
    engine.checkpoint_layers(run.state.checkpoint_layers)
    for micro in worst_step(run):
        enter("forward")
        loss_sum = run.loss_sum(engine.to_device(run.batch(micro)))
        enter("backward")
        engine.backward(loss_sum)
        del loss_sum
    enter("optimizer step")
    engine.step(rate=0.0, max_norm=run.config.optimizer.max_gradient_norm)


def _measure_on_cpu(run: Run) -> tuple[int, Trace | None, list[Path]]:
    """Follow real tensors with the tracker."""
    model = run.model.train()
    _run_worst_step(run)  # the optimizer's state comes into being
    tracker = Tracker(model, granularity=1)
    phases: list[tuple[int, str]] = []
    with tracker:
        tracker.mark(model.parameters(), PARAMETERS)
        tracker.mark(model.buffers(), PARAMETERS)
        for entries in run.engine.optimizer.state.values():
            tracker.mark((value for value in entries.values() if isinstance(value, Tensor)), OPTIMIZER)
        for number in range(STEPS - 1):
            start, resident = len(tracker.events), tracker.bytes
            phases.clear()
            _run_worst_step(run, lambda name: phases.append((len(tracker.events), name)))
            say(f"step {number + 2}: {gib(tracker.peak)} at the peak")
    measured = summarise(tracker, start, resident, phases)
    return measured.peak, measured, []


def _measure_on_gpu(run: Run) -> tuple[int, Trace | None, list[Path]]:
    """The allocator's own figures, and its history for https://pytorch.org/memory_viz."""
    engine = run.engine
    engine.model.train()
    _run_worst_step(run)
    snapshot = run.folder / f"memory_snapshot_rank{engine.rank}.pickle"
    torch.cuda.memory._record_memory_history(max_entries=200_000)
    for number in range(STEPS - 1):
        engine.reset_peak_memory()
        _run_worst_step(run)
        say(f"step {number + 2}: {gib(engine.peak_memory())} allocated, {gib(engine.peak_reserved_memory())} reserved")
    torch.cuda.memory._dump_snapshot(str(snapshot))
    torch.cuda.memory._record_memory_history(enabled=None)
    return engine.peak_memory(), None, [snapshot]


def _write(run: Run, measured_trace: Trace, planned: Trace, measured: int) -> Iterator[Path]:
    if has_library("matplotlib"):
        file = run.folder / run_files.MEMORY_PICTURE
        title = f"memory of one step: {run.config.model.model}, largest micro-batch"
        run.report.add_image("memory/step", plot_memory(measured_trace.timeline, title, file))
        yield file
    else:
        say(f"{run_files.MEMORY_PICTURE}: not drawn, it needs matplotlib: {cure('compare')}")
    record = {
        "measured_peak": measured,
        "planned_peak": planned.peak,
        "planned": planned.categories,
        "measured": measured_trace.categories,
        "modules": measured_trace.modules,
        "at": measured_trace.at,
    }
    write_json(run.folder / run_files.PROFILE, record)
    yield run.folder / run_files.PROFILE


def _text(measured: int, measured_trace: Trace, planned: Trace, agrees: bool) -> str:
    rows = [[name, gib(size), gib(planned.categories[name])] for name, size in measured_trace.categories.items()]
    rows.append(["peak", gib(measured), gib(planned.peak)])
    modules = [[name, gib(size)] for name, size in list(measured_trace.modules.items())[:LARGEST_MODULES]]
    verdict = "agrees with the plan" if agrees else "DIFFERS from the plan"
    return "\n".join(
        [
            table(["at the peak", "measured", "planned"], rows),
            "",
            table(["largest activations", "size"], modules),
            "",
            f"measured {verdict}: {measured / planned.peak - 1:+.2%}",
        ]
    )
