"""The verb `plan`: a question in flags, answered in words or JSON, without a GPU, a network or data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pal_dist.config.schema import RunConfig
from pal_dist.core.console import table
from pal_dist.core.errors import UserError
from pal_dist.core.units import GIBIBYTE
from pal_dist.data.sampling import Sampling
from pal_dist.data.token_cache import load_tokenizer
from pal_dist.distributed.compatibility import check_compatible
from pal_dist.distributed.engine import Engine
from pal_dist.distributed.precision import choose_precision
from pal_dist.distributed.strategy import read_strategy
from pal_dist.memory.devices import Device, device_at_hand, find_device
from pal_dist.memory.planner import PlannedRun, as_flags, as_record, meta_model, search, trace_plan, workload_of
from pal_dist.memory.scaling import CHECKPOINT_STEPS, STORAGE, ScalingPoint, strong, weak
from pal_dist.memory.search import (
    Machine,
    Plan,
    SearchSpace,
    alternatives,
    candidates,
    full_search_space,
    nearest_that_does_not_fit,
)
from pal_dist.models.multi_task import check_model_options, model_config, serves_cached_features
from pal_dist.models.pretrained import KNOWN_ENCODERS, encoder_config
from pal_dist.tasks.registry import resolve_tasks
from pal_dist.training.inputs import load_corpora, locate_inputs


@dataclass(frozen=True)
class Question:
    """What is asked: a run, and the machine it is for."""

    run: RunConfig
    origins: dict[str, str]
    gpu: str | None = None
    gpus: int = 1
    nodes: int = 1
    network: float | None = None
    """1e9 bytes a second between nodes; None: the device's assumption."""
    attention: str = "sdpa"
    task_graphs: int = 1

    def given(self, name: str) -> bool:
        return self.origins[name] != "default"


@dataclass(frozen=True)
class Answer:
    """The plan, or the least that was asked and does not fit with the nearest plan that would."""

    question: Question
    planned: PlannedRun
    would_fit: PlannedRun | None
    lengths_from: str
    cached: bool = False
    """The run computes once what its heads read, so it needs less than the plan."""

    def text(self) -> str:
        return to_text(self)

    def json(self) -> str:
        return to_json(self)


def ask(run: RunConfig, origins: dict[str, str], options: dict[str, str], *, cache_dir: Path) -> Answer:
    """The question as the command line puts it. Raises UserError."""
    question = Question(
        run, origins, gpu=options.get("gpu"), attention=_one_of("attention", options, ("sdpa", "eager")) or "sdpa",
        gpus=_whole("gpus", options), nodes=_whole("nodes", options),
        task_graphs=_whole("task_graphs", options), network=_gigabytes(options.get("network")),
    )  # fmt: skip
    if origins["data_dir"] == "default":
        return answer(question)
    tasks = resolve_tasks(run.data.tasks)
    # The uncased BERTs share MiniLM's vocabulary, so lengths need no download.
    known = run.model.model in KNOWN_ENCODERS and "uncased" in run.model.model
    sources = locate_inputs(replace(run, model=replace(run.model, model="minilm")) if known else run, cache_dir)
    tokenizer = load_tokenizer(sources.model_dir)
    corpora = load_corpora(run, tasks, "train", sources, tokenizer)
    return answer(question, lengths=[corpus.lengths for corpus in corpora.values()])


def _whole(name: str, options: dict[str, str]) -> int:
    given = options.get(name, "1")
    if not given.isdigit() or int(given) < 1:
        raise UserError(f"--{name} takes a whole number from 1; found {given!r}")
    return int(given)


def _gigabytes(gigabits: str | None) -> float | None:
    try:
        found = None if gigabits is None else float(gigabits) / 8
    except ValueError:
        found = 0.0
    if found is not None and not 0 < found < float("inf"):
        raise UserError(f"--network takes Gbit/s between nodes, above 0; found {gigabits!r}")
    return found


def _one_of(name: str, options: dict[str, str], known: tuple[str, ...]) -> str | None:
    given = options.get(name)
    if given is not None and given not in known:
        raise UserError(f"--{name} is one of {', '.join(known)}; found {given!r}")
    return given


def answer(question: Question, *, lengths: Sequence[NDArray[np.int32]] = (), certify: bool = True) -> Answer:
    """Plan for the question; without `certify` by the closed form alone.

    Raises UserError for a device, model or setting that there is not.
    """
    run = question.run
    tasks = resolve_tasks(run.data.tasks)
    encoder = encoder_config(run.model.model)
    check_model_options(run.model.model, encoder, run.model, run.data.max_length)
    config = model_config(encoder, tasks, run.model, run.data.max_length)
    device = _device(question)
    choose_precision(run.train.precision, device.capability)
    cached = serves_cached_features(run.train, meta_model(run, config))
    if cached:  # the one pass over the data halves a batch that is too large, whatever was asked
        run = replace(run, memory=replace(run.memory, tokens_per_micro_batch=None))
        question = replace(question, run=run)
    machine = Machine(replace(device, network=question.network or device.network), question.gpus, question.nodes)
    sampling = None
    if lengths:
        sampling = Sampling(run.batch.sampling, tuple(map(len, lengths)), run.batch.batch_size, run.batch.step_tasks,
                            run.train.epochs, run.train.seed)  # fmt: skip
    work = workload_of(
        run, config, ranks=machine.ranks, multiple=1 if machine.device.is_cpu else 8, sampling=sampling,
        lengths=lengths, task_graphs=question.task_graphs,
    )  # fmt: skip
    free = full_search_space(machine)
    if run.train.strategy != "auto":
        check_compatible(run, read_strategy(run.train.strategy))
    choices = _choices(question, free)
    found = search(work, machine, choices, config, certify=certify)
    source = "token lengths of the training files" if lengths else f"every example {work.longest} tokens long (no data)"
    if found is not None and found.fits:
        return Answer(question, found, None, source, cached)
    least = min(candidates(work, machine, choices), key=lambda plan: plan.needed)
    traced = None
    if certify and least.is_replicated and not machine.device.is_cpu and least.work.task_graphs == 1:
        traced = trace_plan(least, config)
    would = search(work, machine, free, config, certify=False)
    return Answer(question, PlannedRun(least, traced, tuple(candidates(work, machine, choices))), would, source, cached)


def _device(question: Question) -> Device:
    if question.gpu == "cpu":
        return device_at_hand(Engine(precision="fp32").hardware())
    if question.gpu is not None:
        return find_device(question.gpu)
    found = device_at_hand(Engine(precision="auto").hardware())
    if found.is_cpu:
        raise UserError("plan: there is no GPU here; name the one to plan for, such as --gpu t4 (or --gpu cpu)")
    return found


def _choices(question: Question, free: SearchSpace) -> SearchSpace:
    """The options that the question leaves free."""
    run = question.run
    single = "ddp" if question.gpus * question.nodes > 1 else "single"
    precision, layers = run.train.precision, run.memory.checkpoint_layers
    return SearchSpace(
        precision=free.precision if precision == "auto" else (precision,),
        attention=(question.attention,),
        checkpoint_layers=free.checkpoint_layers if layers is None else (layers,),
        optimizer=(run.optimizer.optimizer,) if question.given("optimizer") else free.optimizer,
        strategy=(single,) if run.train.strategy == "auto" else (run.train.strategy,),
        tokens=run.memory.tokens_per_micro_batch,
    )


def to_json(answer: Answer) -> str:
    record: dict[str, Any] = {**as_record(answer.planned), "lengths": answer.lengths_from}
    record["features_cached"] = answer.cached
    record["cures"] = [
        {"lever": name, "saves_bytes": answer.planned.plan.needed - other.needed,
         "time_ratio": other.seconds / answer.planned.plan.seconds, "fits": other.fits}
        for name, other in alternatives(answer.planned.plan)
    ]  # fmt: skip
    record["nearest_that_fits"] = as_record(answer.would_fit) if answer.would_fit else None
    if answer.planned.plan.machine.ranks > 1:
        plan = answer.planned.plan
        record["scaling"] = {"weak": _scale_records(weak(plan)), "strong": _scale_records(strong(plan))}
    return json.dumps(record)


def _scale_records(points: list[ScalingPoint]) -> list[dict[str, float]]:
    return [{**asdict(point), "seconds": point.seconds, "examples_per_second": point.examples_per_second,
             "efficiency": point.efficiency(points[0])} for point in points]  # fmt: skip


def to_text(answer: Answer) -> str:
    """The answer for a person."""
    question, planned, plan = answer.question, answer.planned, answer.planned.plan
    run, device, work = question.run, plan.machine.device, plan.work
    rows, length = plan.worst_batch
    lines = [
        f"{run.model.model} with adapter `{run.model.adapter}` for {', '.join(run.data.tasks)}: "
        f"{work.shape.parameters:,} parameters, {work.shape.trained_parameters:,} trained",
        f"{run.batch.batch_size} examples of a task in a step, at most {run.data.max_length} tokens each; "
        f"{answer.lengths_from}",
        f"{plan.machine.ranks} x {device.name}: {device.memory / GIBIBYTE:.2f} GiB, {device.usable / GIBIBYTE:.2f} "
        f"usable ({device.source})",
        "",
        f"{'FITS' if planned.fits else 'DOES NOT FIT'}: {as_flags(plan)}",
        f"  attention {plan.options.attention}, strategy {plan.strategy}; largest micro-batch {rows} x {length} tokens"
        + (f", {work.task_graphs} task graphs alive at once" if work.task_graphs > 1 else ""),
        "",
        _bytes_table(planned),
        "",
        f"speed (an estimate): {plan.seconds:.2f} s a step, {plan.examples_per_second:,.0f} examples/s",
    ]
    if answer.cached:
        said = "features: the encoder runs over the data once, the steps are of heads alone: this run needs less than"
        lines.insert(3, f"{said} the plan, and is faster, for the plan is that of --features off")
    misfit = nearest_that_does_not_fit(planned.plans, plan) if planned.fits else None
    if misfit is not None:
        over = (misfit.needed - device.usable) / GIBIBYTE
        lines.append(f"nearest that does not fit: {as_flags(misfit)}: {over:.2f} GiB too much")
    if not planned.fits:
        lines.append(_what_would_fit(answer))
    changed = alternatives(plan)
    if changed:
        lines += ["", "with one option changed (time: estimates):", _alternatives_table(plan, changed)]
    if any(name.startswith("zero") and other.needed > plan.needed for name, other in changed):
        lines.append(
            "A negative saving is no mistake: ZeRO's bucket and its copies cost more than its shares save here."
        )
    if plan.machine.ranks > 1:
        lines += ["", _scale_table(plan)]
    return "\n".join(lines)


def _bytes_table(planned: PlannedRun) -> str:
    plan, traced = planned.plan, planned.traced
    rows = []
    for name, size in plan.estimate.categories.items():
        shown = "" if traced is None or name not in traced.categories else f"{traced.categories[name] / GIBIBYTE:.2f}"
        if size or shown not in ("", "0.00"):
            rows.append([name, f"{size / GIBIBYTE:.2f}", shown])
    rows.append(["peak", f"{plan.estimate.peak / GIBIBYTE:.2f}", f"{traced.peak / GIBIBYTE:.2f}" if traced else ""])
    rows.append(["with margin (5 %, rounding 2 %)", f"{plan.needed / GIBIBYTE:.2f}", ""])
    left = (plan.machine.device.usable - plan.needed) / GIBIBYTE
    rows.append(["left" if left >= 0 else "missing", f"{abs(left):.2f}", ""])
    return table(["GiB at the peak", "closed form", "traced"], rows)


def _what_would_fit(answer: Answer) -> str:
    if answer.would_fit is not None:
        would = answer.would_fit.plan
        return (
            f"nearest plan that would fit: {as_flags(would)}: {would.needed / GIBIBYTE:.2f} GiB, "
            f"{would.examples_per_second:,.0f} examples/s (an estimate)"
        )
    return "nothing makes it fit on this device: choose a smaller --model or --max_length, or a larger --gpu"


def _alternatives_table(plan: Plan, changed: list[tuple[str, Plan]]) -> str:
    rows = []
    for name, other in changed:
        saved = (plan.needed - other.needed) / GIBIBYTE
        rows.append([name, f"{saved:.2f}", f"x {other.seconds / plan.seconds:.2f}", "yes" if other.fits else "no"])
    return table(["change", "saves GiB", "time", "fits then"], rows)


def _scale_table(plan: Plan) -> str:
    device, nodes = plan.machine.device, plan.machine.nodes
    growing, shared = weak(plan), strong(plan)
    rows = []
    for point, same in zip(growing, shared, strict=True):
        milliseconds = [f"{1e3 * part:.1f}" for part in
                        (point.compute, point.all_reduce, point.input, point.checkpoint, point.seconds)]  # fmt: skip
        rows.append([
            f"{point.gpus}", f"{point.nodes}", f"{point.examples:,}", *milliseconds,
            f"{point.examples_per_second:,.0f}", f"{point.efficiency(growing[0]):.0%}",
            f"{1e3 * same.seconds:.1f}", f"{same.efficiency(shared[0]):.0%}",
        ])  # fmt: skip
    header = ["GPUs", "nodes", "examples", "compute", "all-reduce", "input", "checkpoint", "step", "examples/s",
              "efficiency", f"step of {plan.work.examples:,}", "efficiency"]  # fmt: skip
    network = f", {8 * device.network:g} Gbit/s between nodes (--network)" if nodes > 1 else ""
    return (
        "scale, in milliseconds of a step (estimates). Left: each GPU keeps its examples; right: all share this run's "
        f"batch.\n{table(header, rows)}\n"
        f"assumed: one ring over {device.link:g} GB/s within a node{network}, nothing overlaps, a checkpoint every "
        f"{CHECKPOINT_STEPS:,} steps at {STORAGE / 1e9:g} GB/s\n"
        "(the speed above is of the devices and their links alone)"
    )
