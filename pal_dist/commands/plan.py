"""The verb `plan`: from flags to a request to a report, without a GPU, a network or data. plan_text.py words it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pal_dist.config.schema import RunConfig
from pal_dist.core.errors import UserError
from pal_dist.data.sampling import Sampling
from pal_dist.data.tokenizer import load_tokenizer
from pal_dist.distributed.compatibility import check_compatible
from pal_dist.distributed.hardware import hardware_of
from pal_dist.distributed.precision import choose_precision
from pal_dist.distributed.strategy import read_strategy
from pal_dist.memory.devices import Device, device_at_hand, find_device
from pal_dist.memory.planner import PlannedRun, counted_attention, meta_model, search, trace_plan, workload_of
from pal_dist.memory.search import Machine, SearchSpace, Workload, candidates, full_search_space
from pal_dist.memory.speed_probe import with_measured_speed
from pal_dist.memory.trace import DTYPES
from pal_dist.models.kernel_choice import check_has, prefer
from pal_dist.models.multi_task import MultiTaskBertConfig, check_model_options, model_config, serves_cached_features
from pal_dist.models.precision import KernelTarget
from pal_dist.models.pretrained import KNOWN_ENCODERS, encoder_config
from pal_dist.tasks.registry import resolve_tasks
from pal_dist.training.inputs import load_corpora, locate_inputs


@dataclass(frozen=True)
class PlanRequest:
    """A run, and the machine to plan it for."""

    run: RunConfig
    origins: dict[str, str]
    """Where each setting of the run came from: one that is not a default is fixed."""
    gpu: str | None = None
    """Kind of GPU, or `cpu`; None: the one at hand."""
    gpus: int = 1
    """Of each node."""
    nodes: int = 1
    network: float | None = None
    """1e9 bytes a second between nodes; None: the device's assumption."""
    task_graphs: int = 1
    """Graphs of tasks that are alive at once."""

    def is_given(self, name: str) -> bool:
        """The setting of the run has not its default."""
        return self.origins[name] != "default"


@dataclass(frozen=True)
class PlanReport:
    """The plan, or the least that was asked and does not fit with the nearest plan that would."""

    request: PlanRequest
    planned: PlannedRun
    would_fit: PlannedRun | None
    lengths_from: str
    """Where the lengths of examples come from, in words."""
    features_cached: bool = False
    """The run computes once what its heads read, so it needs less than the plan."""

    @property
    def fits(self) -> bool:
        return self.planned.fits


def plan_from_flags(
    run: RunConfig, origins: dict[str, str], options: Mapping[str, str], *, cache_dir: Path
) -> PlanReport:
    """The report on a run whose settings and whose machine the command line names. Raises UserError.

    Args:
        options: what PLAN_OPTIONS of options.py explains, as typed.
        cache_dir: where tokenised corpora are kept unless the settings say otherwise.
    """
    request = request_from_flags(run, origins, options)
    if not request.is_given("data_dir"):
        return make_plan(request)
    # The uncased BERTs share MiniLM's vocabulary, so lengths need no download.
    is_uncased = run.model.model in KNOWN_ENCODERS and "uncased" in run.model.model
    paths = locate_inputs(replace(run, model=replace(run.model, model="minilm")) if is_uncased else run, cache_dir)
    tokenizer = load_tokenizer(paths.model_dir)
    corpora = load_corpora(run, resolve_tasks(run.data.tasks), "train", paths, tokenizer)
    return make_plan(request, lengths=[corpus.lengths for corpus in corpora.values()])


def request_from_flags(run: RunConfig, origins: dict[str, str], options: Mapping[str, str]) -> PlanRequest:
    """The request as the command line puts it. Raises UserError for a value that an option does not take."""
    return PlanRequest(
        run,
        origins,
        gpu=options.get("gpu"),
        gpus=_whole_number("gpus", options),
        nodes=_whole_number("nodes", options),
        network=_gigabytes(options["network"]) if "network" in options else None,
        task_graphs=_whole_number("task_graphs", options),
    )


def _whole_number(name: str, options: Mapping[str, str]) -> int:
    text = options.get(name, "1")
    if not text.isdigit() or int(text) < 1:
        raise UserError(f"--{name} takes a whole number from 1; found {text!r}")
    return int(text)


def _gigabytes(gigabits: str) -> float:
    try:
        rate = float(gigabits) / 8
    except ValueError:
        rate = math.nan
    if not 0 < rate < math.inf:
        raise UserError(f"--network takes Gbit/s between nodes, above 0; found {gigabits!r}")
    return rate


def make_plan(request: PlanRequest, *, lengths: Sequence[NDArray[np.int32]] = (), certify: bool = True) -> PlanReport:
    """Plan for the request.

    Args:
        lengths: tokens of every training example, by task; without them every example is as long as it may be.
        certify: trace a plan that is tight; else the closed form is believed.

    Raises UserError for a device, model or setting that there is not.
    """
    run = request.run
    tasks = resolve_tasks(run.data.tasks)
    encoder = encoder_config(run.model.model)
    check_model_options(run.model.model, encoder, run.model, run.data.max_length)
    config = model_config(encoder, tasks, run.model, run.data.max_length)
    device = _device(request)
    target = KernelTarget("cpu" if device.is_cpu else "cuda", device.capability)
    low = DTYPES[device.low_precision] or torch.float32
    check_has(run.model.attention, target, place=device.name, dtype=low)
    prefer(run.model.attention)
    choose_precision(run.train.precision, device.capability)
    features_cached = serves_cached_features(run.train, meta_model(run, config))
    if features_cached:  # the one pass over the data halves a batch that is too large, whatever was asked
        run = replace(run, memory=replace(run.memory, tokens_per_micro_batch=None))
        request = replace(request, run=run)
    machine = Machine(replace(device, network=request.network or device.network), request.gpus, request.nodes)
    work = workload_of(
        run,
        config,
        ranks=machine.ranks,
        sampling=Sampling.of_run(run, sizes=[len(of_task) for of_task in lengths]) if lengths else None,
        lengths=lengths,
        task_graphs=request.task_graphs,
    )
    if run.train.strategy != "auto":
        check_compatible(run, read_strategy(run.train.strategy))
    choices = _choices(request, full_search_space(machine))
    planned = search(work, machine, choices, config, certify=certify)
    would_fit = None
    if planned is None or not planned.fits:
        planned = _least(work, machine, choices, config, certify=certify)
        would_fit = search(work, machine, full_search_space(machine), config, certify=False)
    source = "token lengths of the training files" if lengths else f"every example {work.longest} tokens long (no data)"
    return PlanReport(request, planned, would_fit, source, features_cached)


def _device(request: PlanRequest) -> Device:
    if request.gpu == "cpu":
        return _at_hand(torch.device("cpu"))
    if request.gpu is not None:
        return find_device(request.gpu)
    if not torch.cuda.is_available():
        raise UserError("plan: there is no GPU here; name the one to plan for, such as --gpu t4 (or --gpu cpu)")
    return _at_hand(torch.device("cuda"))


def _at_hand(place: torch.device) -> Device:
    return with_measured_speed(device_at_hand(hardware_of(place)), place)


def _choices(request: PlanRequest, everything: SearchSpace) -> SearchSpace:
    """The options that the request leaves free."""
    run = request.run
    replicated = "ddp" if request.gpus * request.nodes > 1 else "single"
    precision, layers = run.train.precision, run.memory.checkpoint_layers
    return SearchSpace(
        precision=everything.precision if precision == "auto" else (precision,),
        attention=(counted_attention(run),),
        checkpoint_layers=everything.checkpoint_layers if layers is None else (layers,),
        optimizer=(run.optimizer.optimizer,) if request.is_given("optimizer") else everything.optimizer,
        strategy=(replicated,) if run.train.strategy == "auto" else (run.train.strategy,),
        tokens=run.memory.tokens_per_micro_batch,
    )


def _least(
    work: Workload, machine: Machine, choices: SearchSpace, config: MultiTaskBertConfig, *, certify: bool
) -> PlannedRun:
    """Of plans that do not fit, the one that needs least; traced where the trace can follow it."""
    plans = tuple(candidates(work, machine, choices))
    plan = min(plans, key=lambda plan: plan.needed)
    traceable = plan.is_replicated and not machine.device.is_cpu and work.task_graphs == 1
    return PlannedRun(plan, trace_plan(plan, config) if certify and traceable else None, plans)
