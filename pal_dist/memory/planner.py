"""From a run's settings to a plan: what has to be done, on which machine, with which levers; certified by a trace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pal_dist.config.schema import UNPLANNED_TOKENS, RunConfig
from pal_dist.core.errors import DoesNotFitError
from pal_dist.core.units import gib
from pal_dist.data.sampling import Sampling
from pal_dist.data.token_cache import Batch
from pal_dist.distributed.task_gradients import TaskGradients
from pal_dist.memory.closed_form import shape_of
from pal_dist.memory.devices import Device
from pal_dist.memory.search import Machine, Plan, SearchSpace, Workload, candidates, fastest, largest_that_fits
from pal_dist.memory.trace import Trace, trace
from pal_dist.models.multi_task import MultiTaskBert, MultiTaskBertConfig
from pal_dist.optim.optimizers import build_optimizer

TRACE_FROM = 0.5
"""Share of the device from which a plan is certified by a trace; below it the closed form's error cannot matter."""


def workload_of(
    run: RunConfig, config: MultiTaskBertConfig, *, ranks: int, multiple: int, sampling: Sampling | None = None,
    lengths: Sequence[NDArray[np.int32]] = (), graphs: int = 1,
) -> Workload:  # fmt: skip
    """What a step has to get through. Without `lengths` every example is taken to be as long as it may be."""
    tasks = len(run.data.tasks)
    per_task, examples = run.batch.batch_size, run.batch.batch_size * (tasks if run.batch.step_tasks == "all" else 1)
    if sampling is not None:
        examples = sampling.examples_per_step
        # The most uneven step is the first; at random, one task may get nearly all.
        uneven = sampling.kind == "random" and sampling.step_tasks == "all"
        per_task = examples if uneven else int(sampling.counts(0).max())
        per_task = min(per_task, max(sampling.sizes))
    longest = max((int(found.max()) for found in lengths), default=run.data.max_length)
    return Workload(
        shape=shape_of(_meta_model(run, config), config),
        rows=-(-per_task // ranks),
        longest=-(-longest // multiple) * multiple,
        mean_length=float(np.mean([found.mean() for found in lengths])) if lengths else float(run.data.max_length),
        tasks=tasks if run.batch.step_tasks == "all" else 1,
        examples=examples,
        graphs=graphs,
        apart=run.balance.conflict != "none",
    )


def _meta_model(run: RunConfig, config: MultiTaskBertConfig) -> MultiTaskBert:
    with torch.device("meta"):
        return build_for_trace(run, config)


def caches_features(run: RunConfig, config: MultiTaskBertConfig) -> bool:
    """Whether the run computes once what its heads read (training/feature_cache.py); steps are then without encoder."""
    return run.train.features == "auto" and _meta_model(run, config).trains_heads_only


def build_for_trace(run: RunConfig, config: MultiTaskBertConfig, checkpoint_layers: int = 0) -> MultiTaskBert:
    """The run's model with weights of no meaning: on fake or meta tensors it costs nothing."""
    model = MultiTaskBert(config)
    if run.train.mode == "pretrain":
        model.freeze_encoder()
    model.checkpoint_layers = checkpoint_layers
    return model


def trace_plan(plan: Plan, run: RunConfig, config: MultiTaskBertConfig) -> Trace:
    """Trace the plan's largest micro-batch, all gradients alive, and its update."""
    rows, length = plan.worst_batch
    task = next(iter(config.task_table().values()))
    tokens = torch.zeros(rows, length, dtype=torch.long)
    batch = Batch(
        task.name, tokens, tokens, torch.ones(rows, length, dtype=torch.bool), torch.zeros(rows), rows * length
    )
    options = replace(run.optimizer, optimizer=plan.options.optimizer)  # type: ignore[arg-type]
    # The other tasks' gradients lie aside, and this one's is there from an earlier micro-batch.
    before = plan.work.tasks if plan.work.apart else 0
    least = Batch(task.name, tokens[:1, :8], tokens[:1, :8], None, torch.zeros(1), 8)
    ends = [*range(plan.work.tasks - 1), before]
    return trace(
        partial(build_for_trace, run, config, plan.options.checkpoint_layers),
        [*[least] * before, batch],
        after=kept_apart(ends) if plan.work.apart else None,
        loss=lambda logits, batch: task.objective.loss(logits.float(), batch.labels_B),
        optimizer=lambda model: build_optimizer(model, options, 1e-5),
        device=plan.machine.device,
        precision=plan.options.precision,
        attention=plan.options.attention,
        keeps_gradients=plan.accumulates,
        replay=False,
    )


def kept_apart(ends: Sequence[int]) -> Callable[[nn.Module, int], None]:
    """What a step does with its tasks' gradients under --conflict; `ends`: each task's last micro-batch."""
    kept: list[TaskGradients] = []

    def after(model: nn.Module, number: int) -> None:
        shared = [parameter for parameter in model.get_submodule("bert").parameters() if parameter.requires_grad]
        if not kept:
            kept.append(TaskGradients(shared, len(ends), ranks=1))
        if number in ends:
            kept[0].set_aside(number, last=number == ends[-1])
        if number == ends[-1]:
            kept[0].merge(kept[0].gram()[0])

    return after


@dataclass(frozen=True)
class PlannedRun:
    """A plan and what it stands on."""

    plan: Plan
    traced: Trace | None
    plans: tuple[Plan, ...]
    """All that were looked at."""

    @property
    def fits(self) -> bool:
        return self.plan.fits


def search(
    work: Workload,
    machine: Machine,
    choices: SearchSpace,
    run: RunConfig,
    config: MultiTaskBertConfig,
    *,
    certify: bool = True,
) -> PlannedRun | None:
    """The fastest plan that fits, traced where it is tight; None where none fits."""
    plans = tuple(candidates(work, machine, choices))
    plan = fastest(plans)
    if plan is None:
        return None
    if plan.needed < TRACE_FROM * machine.device.usable or not certify or machine.device.is_cpu:
        return PlannedRun(plan, None, plans)
    for _ in range(3):
        found = trace_plan(plan, run, config)
        plan = replace(plan, correction=max(1.0, found.peak / _traced_part(plan)))
        if plan.fits or choices.tokens:
            return PlannedRun(plan, found, plans)
        narrower = largest_that_fits(plan)
        if narrower.tokens == plan.tokens:
            break
        plan = narrower
    return PlannedRun(plan, found, plans)


def _traced_part(plan: Plan) -> int:
    """What the closed form says of that which the trace sees: one rank, one graph."""
    alone = replace(
        plan, strategy="single", machine=replace(plan.machine, gpus=1, nodes=1), work=replace(plan.work, graphs=1)
    )
    return alone.estimate.peak


def plan_run(
    run: RunConfig, config: MultiTaskBertConfig, device: Device, *, strategy: str, precision: str, ranks: int,
    multiple: int,
    sampling: Sampling, lengths: Sequence[NDArray[np.int32]],
) -> PlannedRun:  # fmt: skip
    """The plan of `train --memory auto`: only options that leave the gradient alone are pulled.

    Raises DoesNotFitError where nothing fits, and says which lever would make it fit.
    """
    work = workload_of(run, config, ranks=ranks, multiple=multiple, sampling=sampling, lengths=lengths)
    machine = Machine(device, gpus=ranks)
    asked, layers = run.memory.tokens_per_micro_batch, run.memory.checkpoint_layers
    if device.is_cpu and asked is None:  # more at once is no faster on processors
        asked = max(work.longest, min(UNPLANNED_TOKENS, work.most_tokens))
    choices = SearchSpace(
        precision=(precision,),
        checkpoint_layers=SearchSpace.checkpoint_layers if layers is None else (layers,),
        optimizer=(run.optimizer.optimizer,),
        strategy=("single" if ranks == 1 and strategy == "ddp" else strategy,),
        attention=("eager" if device.is_cpu else "sdpa",),
        tokens=asked,
    )
    found = search(work, machine, choices, run, config)
    if found is None and asked and run.memory.tokens_per_micro_batch is None:
        found = search(work, machine, replace(choices, tokens=None), run, config)
    if found is None or not found.fits:
        least = min(candidates(work, machine, choices), key=lambda plan: plan.needed)
        free = search(work, machine, full_search_space(machine), run, config, certify=False)
        cure = f"It would with {as_flags(free.plan)}" if free else "Nothing makes it fit but a smaller model or length"
        raise DoesNotFitError(
            f"this run does not fit: it needs {gib(least.needed)} even with {as_flags(least)}; "
            f"{device.name} has {gib(device.usable)}. {cure}. (--memory off tries it all the same)"
        )
    return found


def full_search_space(machine: Machine) -> SearchSpace:
    """Every lever free, ZeRO among them where there are ranks to share with or a host to lend memory."""
    low = machine.device.low_precision
    single = "ddp" if machine.ranks > 1 else "single"
    shared = ("zero1", "zero2", "zero3") if machine.ranks > 1 else ()
    return SearchSpace(
        precision=(low, "fp32") if low != "fp32" else ("fp32",),
        strategy=(single, *shared, "zero2_offload", "zero3_offload"),
    )


def as_flags(plan: Plan) -> str:
    """The plan as flags of `train`."""
    options = plan.options
    words = [f"--precision {options.precision}", f"--optimizer {options.optimizer}",
             f"--checkpoint_layers {options.checkpoint_layers}", f"--tokens_per_micro_batch {plan.tokens}"]  # fmt: skip
    if not plan.is_replicated:
        words.append(f"--strategy {plan.strategy}")
    return " ".join(words)


def as_record(planned: PlannedRun) -> dict[str, Any]:
    """The plan as plain values, for JSON."""
    plan, device = planned.plan, planned.plan.machine.device
    return {
        "fits": planned.fits,
        "device": {"name": device.name, "memory": device.memory, "usable": device.usable, "source": device.source},
        "ranks": plan.machine.ranks,
        "strategy": plan.strategy,
        "precision": plan.options.precision,
        "attention": plan.options.attention,
        "checkpoint_layers": plan.options.checkpoint_layers,
        "optimizer": plan.options.optimizer,
        "tokens_per_micro_batch": plan.tokens,
        "worst_micro_batch": {"examples": plan.worst_batch[0], "length": plan.worst_batch[1]},
        "predicted_peak_bytes": plan.estimate.peak,
        "predicted_bytes": plan.estimate.categories,
        "needed_bytes_with_margin": plan.needed,
        "traced_peak_bytes": planned.traced.peak if planned.traced else None,
        "traced_bytes": planned.traced.categories if planned.traced else None,
        "estimated_seconds_per_step": plan.seconds,
        "estimated_examples_per_second": plan.examples_per_second,
    }
