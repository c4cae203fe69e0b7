"""From a run's settings to a plan: what has to be done, on which machine, with which options; certified by a trace."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pal_dist.config.schema import RunConfig
from pal_dist.core.errors import DoesNotFitError
from pal_dist.core.units import ceil_div, gib
from pal_dist.data.batch import Batch, TextRows, pack_batch
from pal_dist.data.sampling import Sampling
from pal_dist.data.worst_step import most_tokens, rows_per_rank
from pal_dist.distributed.strategy import REPLICATED
from pal_dist.distributed.task_gradients import TaskGradients
from pal_dist.memory.closed_form import shape_of
from pal_dist.memory.devices import Device
from pal_dist.memory.search import (
    Machine,
    Plan,
    SearchSpace,
    Workload,
    candidates,
    fastest,
    full_search_space,
    largest_that_fits,
)
from pal_dist.memory.sharding import planned_strategy
from pal_dist.memory.step_time import launches
from pal_dist.memory.trace import Trace, trace
from pal_dist.models.multi_task import MultiTaskBert, MultiTaskBertConfig
from pal_dist.optim.optimizers import build_optimizer
from pal_dist.tasks.objectives import Objective

TRACE_FROM = 0.5
"""Share of the device from which a plan is certified by a trace; below it the closed form's error cannot matter."""


def workload_of(
    run: RunConfig,
    config: MultiTaskBertConfig,
    *,
    ranks: int,
    sampling: Sampling | None = None,
    lengths: Sequence[NDArray[np.int32]] = (),
    task_graphs: int = 1,
) -> Workload:
    """What a step has to get through.

    Args:
        sampling: None: each task is taken to have `batch_size` examples in each step.
        lengths: tokens of every training example, by task; without them every example is as long as it may be.
        task_graphs: graphs of tasks that are alive at once.
    """
    tasks_in_step = len(run.data.tasks) if run.batch.step_tasks == "all" else 1
    longest = max((int(of_task.max()) for of_task in lengths), default=run.data.max_length)
    even = (ceil_div(run.batch.batch_size, ranks),) * len(run.data.tasks)
    rows = rows_per_rank(sampling, ranks) if sampling else even
    most_of_tasks = most_tokens(lengths, rows) if lengths else [count * longest for count in rows]
    separate = run.balance.conflict != "none"
    return Workload(
        shape=shape_of(meta_model(run, config), config),
        rows=rows,
        longest=longest,
        mean_length=float(np.mean([of_task.mean() for of_task in lengths])) if lengths else float(run.data.max_length),
        examples=sampling.examples_per_step if sampling else run.batch.batch_size * tasks_in_step,
        tasks_in_step=tasks_in_step,
        most_tokens=max(most_of_tasks) if separate or tasks_in_step == 1 else sum(most_of_tasks),
        task_graphs=task_graphs,
        separate_gradients=separate,
        least_tokens=run.data.max_length,  # as --tokens_per_micro_batch has to be
        run=run,
    )


def meta_model(run: RunConfig, config: MultiTaskBertConfig) -> MultiTaskBert:
    """The run's model without any memory of its own."""
    with torch.device("meta"):
        return build_for_trace(run, config)


def build_for_trace(run: RunConfig, config: MultiTaskBertConfig, checkpoint_layers: int = 0) -> MultiTaskBert:
    """The run's model with weights of no meaning: on fake or meta tensors it costs nothing."""
    model = MultiTaskBert(config)
    if run.train.mode == "pretrain":
        model.freeze_encoder()
    model.checkpoint_layers = checkpoint_layers
    return model


def trace_plan(plan: Plan, config: MultiTaskBertConfig) -> Trace:
    """Trace the plan's largest micro-batch, with all gradients alive where a step can have several, and its update."""
    names = list(config.task_table())
    run, separate = plan.work.run, plan.work.separate_gradients
    options = replace(run.optimizer, optimizer=plan.options.optimizer)  # type: ignore[arg-type]
    # The other tasks' gradients lie aside, and this one's is there from an earlier micro-batch.
    before = plan.work.tasks_in_step if separate else 0
    ends = [*range(plan.work.tasks_in_step - 1), before]
    return trace(
        partial(build_for_trace, run, config, plan.options.checkpoint_layers),
        [
            *[batch_of_size([8], names[:1])] * before,
            batch_of_size(plan.worst_batch.lengths, names[: plan.worst_batch.tasks]),
        ],
        after=separate_task_gradients(ends) if separate else None,
        loss=loss_of_segments({name: task.objective for name, task in config.task_table().items()}),
        optimizer=lambda model: build_optimizer(model, options, 1e-5),
        device=plan.machine.device,
        precision=plan.options.precision,
        attention=plan.options.attention,
        keeps_gradients=plan.accumulates,
        replay=False,
    )


def batch_of_size(lengths: Sequence[int], tasks: Sequence[str]) -> Batch:
    """A packed batch of rows of these lengths, shared evenly by the tasks; its tokens have no meaning."""
    parts = np.array_split(np.array(lengths, dtype=np.int32), len(tasks))
    return pack_batch(
        [
            (task, TextRows(np.zeros(int(own.sum()), np.int32), own, own, np.zeros(len(own), np.float32)))
            for task, own in zip(tasks, parts, strict=True)
        ]
    )


def loss_of_segments(objectives: Mapping[str, Objective]) -> Callable[[list[Tensor], Batch], Tensor]:
    """From (logits of each segment, the batch) to the summed loss, for a trace.

    Args:
        objectives: by task.
    """

    def loss(logits: list[Tensor], batch: Batch) -> Tensor:
        losses = [
            objectives[segment.task].loss(values, batch.labels_R[segment.rows])
            for segment, values in zip(batch.segments, logits, strict=True)
        ]
        return torch.stack(losses).sum()

    return loss


def separate_task_gradients(ends: Sequence[int]) -> Callable[[nn.Module, int], None]:
    """What a step does with its tasks' gradients under --conflict, for a trace to call after each backward pass.

    Args:
        ends: the number of each task's last micro-batch.
    """
    gradients: list[TaskGradients] = []  # made with the first model that is seen

    def after(model: nn.Module, number: int) -> None:
        if not gradients:
            assert isinstance(model, MultiTaskBert)
            shared = model.shared_parameters()
            gradients.append(TaskGradients(shared, len(ends), ranks=1))
        if number in ends:
            gradients[0].set_aside(number, last=number == ends[-1])
        if number == ends[-1]:
            gradients[0].merge(gradients[0].gram()[0])

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
    config: MultiTaskBertConfig,
    *,
    certify: bool = True,
) -> PlannedRun | None:
    """The fastest plan that fits, traced where it is tight (unless not to `certify`); None where none fits."""
    plans = tuple(candidates(work, machine, choices))
    plan = fastest(plans)
    if plan is None:
        return None
    if plan.needed < TRACE_FROM * machine.device.usable or not certify or machine.device.is_cpu:
        return PlannedRun(plan, None, plans)
    for _ in range(3):
        traced = trace_plan(plan, config)
        plan = replace(plan, correction=max(1.0, traced.peak / _traced_part(plan)))
        if plan.fits or choices.tokens:
            return PlannedRun(plan, traced, plans)
        smaller = largest_that_fits(plan)
        if smaller.tokens == plan.tokens:
            break
        plan = smaller
    return PlannedRun(plan, traced, plans)


def _traced_part(plan: Plan) -> int:
    """What the closed form says of that which the trace sees: one rank, one graph."""
    alone = replace(
        plan,
        strategy="single",
        machine=replace(plan.machine, gpus=1, nodes=1),
        work=replace(plan.work, task_graphs=1),
    )
    return alone.estimate.peak - alone.graph_bytes


def plan_run(
    run: RunConfig,
    config: MultiTaskBertConfig,
    device: Device,
    *,
    strategy: str,
    precision: str,
    ranks: int,
    sampling: Sampling,
    lengths: Sequence[NDArray[np.int32]],
) -> PlannedRun:
    """The plan of `train --memory auto`: only options that leave the gradient alone are free.

    Raises DoesNotFitError where nothing fits, and says which settings would make it fit.
    """
    named = workload_of(run, config, ranks=ranks, sampling=sampling, lengths=lengths)
    work = replace(named, least_tokens=0)  # nobody has to write this budget as a flag
    machine = Machine(device, gpus=ranks)
    tokens, layers = run.memory.tokens_per_micro_batch, run.memory.checkpoint_layers
    if device.is_cpu and tokens is None:  # more at once is no faster on processors
        tokens = max(work.longest, min(run.memory.token_budget, work.most_tokens))
    choices = SearchSpace(
        precision=(precision,),
        checkpoint_layers=SearchSpace.checkpoint_layers if layers is None else (layers,),
        optimizer=(run.optimizer.optimizer,),
        strategy=("single" if ranks == 1 and strategy == "ddp" else strategy,),
        attention=("eager" if device.is_cpu else counted_attention(run),),
        tokens=tokens,
    )
    planned = search(work, machine, choices, config)
    if planned is None and tokens and run.memory.tokens_per_micro_batch is None:
        planned = search(work, machine, replace(choices, tokens=None), config)
    if planned is not None and planned.fits:
        return planned
    least = min(candidates(work, machine, choices), key=lambda plan: plan.needed)
    launched = replace(named, run=replace(run, train=replace(run.train, strategy=strategy)))
    free = search(launched, machine, full_search_space(machine), config, certify=False)
    cure = f"It would with {as_flags(free.plan)}" if free else "Nothing makes it fit but a smaller model or length"
    raise DoesNotFitError(
        f"this run does not fit: it needs {gib(least.needed)} even with {as_flags(least)}; "
        f"{device.name} has {gib(device.usable)}. {cure}. (--memory off tries it all the same)"
    )


def counted_attention(run: RunConfig) -> str:
    """What attention keeps on a GPU, as `StepOptions` has it: padded rows are counted as if they kept their scores."""
    return "eager" if run.model.attention in ("plain", "padded") else "sdpa"


def as_flags(plan: Plan) -> str:
    """The plan as flags of `train`, to be added to those of its run."""
    options, asked = plan.options, plan.work.run.train.strategy
    flags = {
        "precision": options.precision,
        "optimizer": options.optimizer,
        "checkpoint_layers": options.checkpoint_layers,
        "tokens_per_micro_batch": plan.tokens,
    }
    if not plan.is_replicated:
        flags["strategy"] = plan.strategy
    elif asked != "auto" and planned_strategy(asked).kind != REPLICATED.kind:
        flags["strategy"] = REPLICATED.name
    return " ".join(f"--{name} {value}" for name, value in flags.items())


def speed_text(plan: Plan) -> str:
    """A step's time and what it goes to."""
    time, work = plan.time, plan.work
    text = f"{plan.seconds:.3g} s a step, {plan.examples_per_second:,.0f} examples/s"
    if plan.machine.device.is_cpu:
        return text
    count = launches(work.shape, tasks=work.tasks_at_once, micro_batches=plan.micro_batches)
    replayed = ", replayed as CUDA graphs" if plan.options.graphs else ""
    waiting = f", waits for the host {time.launching / plan.seconds:.0%} of it" if time.launching else ""
    return f"{text}; about {count:,.0f} kernels a step{replayed}{waiting}"


def speed_source(plan: Plan) -> str:
    """Where the speed comes from, in words."""
    return "an estimate by what this device was measured to do" if plan.machine.device.is_measured else "an estimate"


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
        "cuda_graphs": plan.options.graphs,
        "tokens_per_micro_batch": plan.tokens,
        "worst_micro_batch": {"examples": plan.worst_batch.rows, "tokens": plan.worst_batch.tokens},
        "predicted_peak_bytes": plan.estimate.peak,
        "predicted_bytes": plan.estimate.categories,
        "needed_bytes_with_margin": plan.needed,
        "traced_peak_bytes": planned.traced.peak if planned.traced else None,
        "traced_bytes": planned.traced.categories if planned.traced else None,
        "estimated_seconds_per_step": plan.seconds,
        "estimated_seconds": asdict(plan.time),
        "speed_measured": plan.machine.device.is_measured,
        "estimated_examples_per_second": plan.examples_per_second,
    }
