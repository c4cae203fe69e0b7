"""A run put together from its config, stage by stage: inputs, ranks, model, folder; ready for its next step.

The order matters in three places: ranks compare settings and data before the folder is claimed, so that a start that
fails leaves nothing behind; parameters are counted and features computed before a strategy may share the model out; the
worst batches are run last, when everything else that takes memory is there.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from pal_dist.config.schema import RunConfig, default_learning_rate
from pal_dist.core.console import say
from pal_dist.data.batching import Schedule
from pal_dist.data.fixed_sizes import MOST_TOKENS
from pal_dist.data.sampling import Sampling
from pal_dist.data.token_cache import Corpus
from pal_dist.distributed.compatibility import check_compatible, why_no_graphs
from pal_dist.distributed.engine import Engine
from pal_dist.memory.planner import PlannedRun
from pal_dist.models import packed_kernels
from pal_dist.models.attention import SelfAttention
from pal_dist.models.kernel_check import check_packed_kernel
from pal_dist.models.kernel_choice import check_has, choose_attention
from pal_dist.models.multi_task import MultiTaskBert, build_model, check_model_options, serves_cached_features
from pal_dist.models.precision import kernel_target
from pal_dist.models.pretrained import read_model_config
from pal_dist.monitoring import run_files
from pal_dist.monitoring.report import Report, RunReport
from pal_dist.optim.optimizers import build_optimizer
from pal_dist.optim.task_weighting import LEARNED_VARIANCES, LearnedVariances
from pal_dist.training.agreement import check_same_run
from pal_dist.training.checkpoint import load_moments, load_state, load_values
from pal_dist.training.compile_choice import use_compiled_layers
from pal_dist.training.feature_cache import FeatureCache
from pal_dist.training.fit_memory import apply_plan, plan_memory, prove_plan, use_one_micro_batch
from pal_dist.training.inputs import Corpora, Inputs, find_inputs, read_corpora
from pal_dist.training.oom_guard import OutOfMemoryGuard, say_on_main
from pal_dist.training.run import Run
from pal_dist.training.run_folder import open_folder
from pal_dist.training.run_state import RunState
from pal_dist.training.summary import start_lines


def set_up(config: RunConfig, origins: dict[str, str], *, cache_dir: Path) -> Run:
    """Everything a run needs, ready for its next step; what is about to happen has been said.

    Args:
        origins: where each setting's value came from, written beside the run.
        cache_dir: where tokenised corpora are kept unless the config says otherwise.

    Raises UserError, on every rank.
    """
    inputs = find_inputs(config, cache_dir)
    check_model_options(
        inputs.paths.model_dir.name, read_model_config(inputs.paths.model_dir), config.model, config.data.max_length
    )
    engine = join_ranks(config)
    corpora = read_corpora(config, inputs, progress=engine.is_main)
    model = make_model(config, inputs, engine)
    kernels = choose_kernels(config, inputs, corpora, model, engine)
    parameters = model.parameter_counts()
    schedule, total_steps = plan_steps(config, list(corpora.train.values()))
    cached = serves_cached_features(config.train, model)
    plan = None if cached else plan_memory(config, model, engine, schedule, steps=total_steps)
    check_same_run(config, corpora.hashes, engine)
    folder, checkpoint = open_folder(config, origins, corpora.hashes, engine)
    state = begin_state(config, engine, checkpoint)
    schedule.even = state.batch_lengths == "even"
    if checkpoint:
        load_values(checkpoint, model)
    features = None
    if cached:
        features, corpora = cache_features(config, inputs, corpora, model, engine)
    peak_rate = config.optimizer.learning_rate or default_learning_rate(config.train.mode, model.config.hidden_size)
    engine.prepare(model, build_optimizer(model, config.optimizer, peak_rate))
    if checkpoint:
        load_moments(checkpoint, engine)
    apply_plan(state, config, plan, engine)
    if features:
        use_one_micro_batch(state, schedule)
    run = Run(
        config=config,
        inputs=inputs,
        corpora=corpora,
        engine=engine,
        guard=OutOfMemoryGuard(engine, state, on_change=say_on_main(engine)),
        schedule=schedule,
        total_steps=total_steps,
        peak_rate=peak_rate,
        state=state,
        folder=folder,
        report=begin_report(folder, state, total_steps, engine),
        parameters=parameters,
        fixes_sizes=fixes_sizes(config, engine, plan, kernels, cached=cached),
        plan=plan,
        features=features,
        resumed_from=checkpoint,
    )
    with run.report.record_outcome():
        lines = ready_lines(run)
    run.report.say(*start_lines(run, lines))
    return run


def ready_lines(run: Run) -> list[str]:
    """The run's memory proved, its layers compiled where that pays; what is to be said of it."""
    if run.features:
        if run.engine.is_main:
            run.features.record(run.folder / run_files.MEMORY)
        return run.features.lines()
    steps = run.total_steps - run.state.step
    lines = prove_plan(run)
    lines += use_compiled_layers(run.config, run.model, run.engine, run.plan, steps=steps)
    return [*lines, *graph_lines(run)]


def join_ranks(config: RunConfig) -> Engine:
    """This process among the others, watched from now on. Raises UserError where they cannot train this run."""
    engine = Engine(precision=config.train.precision, strategy=config.train.strategy)
    check_compatible(config, engine.strategy)
    engine.group.check_all_nodes_used()
    probe = torch.empty(0, device=engine.device)
    check_has(config.model.attention, kernel_target(probe), place=str(engine.device), dtype=engine.precision.dtype)
    engine.group.start_watchdog(60 * config.train.hang_minutes)
    return engine


def make_model(config: RunConfig, inputs: Inputs, engine: Engine) -> MultiTaskBert:
    """The model on this rank's device, with what is to be trained marked; the same on every rank by the run's seed."""
    torch.manual_seed(config.train.seed)
    model = build_model(inputs.paths.model_dir, inputs.tasks, config.model, config.data.max_length).to(engine.device)
    if config.balance.weighting == LEARNED_VARIANCES:
        model.add_module(LEARNED_VARIANCES, LearnedVariances(inputs.tasks).to(engine.device))
    if config.train.mode == "pretrain":
        model.freeze_encoder()
    return model


def begin_state(config: RunConfig, engine: Engine, checkpoint: Path | None) -> RunState:
    """The state that the checkpoint has kept; a new run's without one."""
    if checkpoint:
        return RunState.from_json(load_state(checkpoint, engine))
    batch_lengths: str = config.batch.batch_lengths
    if batch_lengths == "auto":  # a CPU's attention goes by length, a GPU's steps best have one size
        batch_lengths = "even" if engine.device.type == "cuda" else "alike"
    return RunState(batch_lengths=batch_lengths)


def fixes_sizes(
    config: RunConfig, engine: Engine, planned: PlannedRun | None, kernels: set[str], *, cached: bool
) -> bool:
    """Whether micro-batches are filled up to few sizes, for graphs: where they can be recorded, and a plan, if there is
    one, found that it pays and fits.

    Args:
        kernels: of attention, that the model takes.
        cached: the heads read features instead of tokens.
    """
    if cached or why_no_graphs(config, engine.strategy):
        return False
    if config.train.cuda_graphs == "static":
        return True
    by_length = "by_length" in kernels  # its kernels depend on each row's length
    return engine.device.type == "cuda" and not by_length and (planned is None or planned.plan.options.graphs)


def choose_kernels(
    config: RunConfig, inputs: Inputs, corpora: Corpora, model: MultiTaskBert, engine: Engine
) -> set[str]:
    """The attention kernels that the model takes: as asked, or the quickest for the run's rows by rank 0's measure.
    Says so where one of the device is wrong: the next best is used then."""
    used = set()
    choose_attention(
        config.model.attention,
        np.concatenate([corpus.lengths[:1000] for corpus in corpora.train.values()]),
        place=engine.device,
        dtype=engine.precision.dtype,
        heads=model.config.num_attention_heads,
        head_width=model.config.hidden_size // model.config.num_attention_heads,
        cache_dir=inputs.paths.cache_dir,
    )
    packed_kernels.preferred[:] = engine.gather(list(packed_kernels.preferred))[0]
    shapes = {(module.heads, module.head_width) for module in model.modules() if isinstance(module, SelfAttention)}
    for heads, width in sorted(shapes):
        kernel, problem = check_packed_kernel(engine.device, engine.precision.dtype, heads=heads, head_width=width)
        used.add(kernel)
        if problem:
            say(f"warning: attention on {engine.device} of rank {engine.rank}: {problem}; `{kernel}` is used instead")
    return used


def plan_steps(config: RunConfig, corpora: list[Corpus]) -> tuple[Schedule, int]:
    """The schedule of examples and the number of optimizer steps."""
    sampling = Sampling.of_run(config, sizes=[len(corpus) for corpus in corpora])
    total_steps = config.train.epochs * sampling.steps_per_epoch
    if config.train.max_steps is not None:
        total_steps = min(total_steps, config.train.max_steps)
    schedule = Schedule(sampling, [corpus.lengths for corpus in corpora], window=config.batch.window_batches)
    return schedule, total_steps


def cache_features(
    config: RunConfig, inputs: Inputs, corpora: Corpora, model: MultiTaskBert, engine: Engine
) -> tuple[FeatureCache, Corpora]:
    """What the heads of a frozen encoder read, and the corpora that serve it instead of tokens."""
    features = FeatureCache(
        model,
        engine,
        inputs.paths.cache_dir,
        budget=config.memory.token_budget,
    )
    train, dev = features.all_of(inputs.tasks, corpora.train), features.all_of(inputs.tasks, corpora.dev)
    return features, replace(corpora, train=train, dev=dev)


NO_GRAPHS_OTHERWISE = (
    "the plan finds no time to be won or no room (--memory off tries them), or --attention takes a kernel that depends "
    "on each row's length"
)


def graph_lines(run: Run) -> list[str]:
    """Whether micro-batches will be replayed, and why not."""
    if run.fixes_sizes:
        how = "kernel by kernel" if run.config.train.cuda_graphs == "static" else "as a CUDA graph from its second on"
        return [f"graphs: micro-batches of up to {MOST_TOKENS:,} tokens are filled up to few sizes; each runs {how}"]
    if run.engine.device.type != "cuda":
        return []
    checkpointed = "layers are computed again in backward" if run.state.checkpoint_layers else ""
    reason = why_no_graphs(run.config, run.engine.strategy) or checkpointed
    return [f"graphs: none; {reason or NO_GRAPHS_OTHERWISE}"]


def begin_report(folder: Path, state: RunState, total_steps: int, engine: Engine) -> Report:
    """Rank 0 writes and says; the others' report says nothing."""
    if not engine.is_main:
        return Report()
    return RunReport(folder, step=state.step, total_steps=total_steps, job=engine.group.job)
