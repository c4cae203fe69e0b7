"""What is said before the first step and after the last one: the run's arithmetic and its results."""

from __future__ import annotations

import time
from typing import Any

import psutil

from pal_dist import __version__
from pal_dist.core.console import duration, table
from pal_dist.monitoring import run_files
from pal_dist.training.run import Run

LOOKED_AT = 50
"""Steps whose micro-batches are counted before the first one."""


def since_start() -> float:
    """Seconds since this process started, imports included."""
    return time.time() - psutil.Process().create_time()


def start_lines(run: Run, memory_lines: list[str]) -> list[str]:
    """The arithmetic of the run, said before it starts; `memory_lines` are what was planned and proved."""
    lines = [f"pal-dist {__version__}: run folder {run.folder}"]
    if job := run.engine.group.job:
        lines.append(f"Slurm job {job['slurm_job']}, started again {job['slurm_restarts']} times (SLURM_RESTART_COUNT)")
    return [
        *lines,
        *_data_lines(run),
        *_model_lines(run),
        *_device_lines(run),
        *memory_lines,
        _learning_rate_line(run),
        *_step_lines(run),
        f"ready {since_start():.1f} s after the process started",
    ]


def _data_lines(run: Run) -> list[str]:
    lines = []
    if run.inputs.paths.synthetic:
        lines.append(
            "data: the built-in SYNTHETIC corpus; its scores show that training works, nothing about real text"
        )
    for name, train in run.corpora.train.items():
        splits = [train, *([run.corpora.dev[name]] if name in run.corpora.dev else [])]
        for corpus in splits:
            lines += [f"warning: {line}" for line in corpus.report.lines()]
        sizes = " + ".join(f"{len(corpus):,} {split}" for corpus, split in zip(splits, ("train", "dev"), strict=False))
        truncated = sum(corpus.report.truncated for corpus in splits)
        skipped = sum(corpus.report.bad_rows for corpus in splits)
        lines.append(
            f"data: {name}: {sizes} examples, {train.lengths.mean():.1f} tokens on average; {truncated:,} cut to "
            f"{run.config.data.max_length}, {skipped:,} bad rows skipped"
        )
    return lines


def _model_lines(run: Run) -> list[str]:
    model, counts = run.config.model, run.parameters
    lines = [
        f"model: {model.model} with adapter `{model.adapter}`, heads read `{run.model.config.pooling}`: "
        f"{counts['total']:,} parameters, {counts['trained']:,} trained ({run.config.train.mode})"
    ]
    lines += [
        f"model: {task.name} alone: {counts[task.name]:,} parameters (adapter and head)"
        for task in run.tasks
        if counts[task.name]
    ]
    return lines


def _device_lines(run: Run) -> list[str]:
    engine = run.engine
    lines = [f"precision: {engine.precision.name} ({engine.precision.reason}) on {engine.ranks} x {engine.device.type}"]
    if engine.ranks > 1 or engine.strategy.kind != "replicated":
        lines.append(f"strategy: {engine.strategy.name} over {engine.ranks} ranks")
    return lines


def _learning_rate_line(run: Run) -> str:
    options = run.config.optimizer
    rate = f"learning rate: peak {run.peak_rate:g}"
    if options.learning_rate is None:
        rate += f" (the default for {run.config.train.mode} at width {run.model.config.hidden_size})"
    after_warmup = {"linear": "falling to 0", "constant": "staying there"}[options.schedule]
    return f"{rate}, rising over the first {options.warmup:.0%} of steps, then {after_warmup}; {options.optimizer}"


def _step_lines(run: Run) -> list[str]:
    sampling = run.schedule.sampling
    examples = [len(rows) for _, rows in next(run.schedule.steps(0, 1))]
    micro_batches = planned_micro_batches(run)
    packed = "packed" if run.fixes_sizes else "packed without padding"
    each = f"at most {run.state.tokens_per_micro_batch:,} tokens each, {packed}"
    resumed = f"; resumed after step {run.state.step:,}" if run.resumed_from else ""
    return [
        f"one step: {' + '.join(map(str, examples))} examples = {sum(examples)}, in about {micro_batches:.1f} "
        f"micro-batches on each of {run.engine.ranks} ranks, {'of cached features' if run.features else each}",
        f"steps: {sampling.describe_epoch(tuple(task.name for task in run.tasks))}",
        f"steps: {run.total_steps:,} in all{resumed}",
    ]


def planned_micro_batches(run: Run, *, steps: int = LOOKED_AT) -> float:
    """Micro-batches of this rank in a step, looked up in the first steps."""
    steps = min(steps, run.total_steps)
    return sum(len(run.micro_batches(step_rows)) for step_rows in run.schedule.steps(0, steps)) / steps


def collect_results(run: Run) -> dict[str, Any]:
    """What `results.json` holds.

    Scores are those of the kept model: the one with the best dev mean, or of its parts, each task's at its own best.
    """
    state = run.state
    return {
        "dev": state.best_metrics,
        "headline": {task.name: task.metric for task in run.tasks},
        "dev_mean": state.best_mean,
        "best_step": state.best_step,
        "best_each": state.best_each,
        "examples_per_second": state.examples / state.seconds,
        "useful_tokens_per_second": state.useful_tokens / state.seconds,
        "useful_token_share": state.useful_tokens / state.tokens,
        "steps": state.step,
        "examples": state.examples,
        "seconds": state.seconds,
        "evaluation_seconds": state.evaluation_seconds,
        "total_seconds": since_start(),
        "parameters": run.parameters["total"],
        "parameters_by_part": run.parameters,
        "peak_memory_bytes": run.engine.peak_memory(),
        "precision": run.engine.precision.name,
        "ranks": run.engine.ranks,
        "features_cached": run.features is not None,
    }


def end_lines(results: dict[str, Any], run: Run) -> list[str]:
    """The table at the end, and where everything lies."""
    folder = run.folder
    kept_of = f"best dev mean, step {results['best_step']:,}"
    if run.config.train.keep_best == "parts":
        steps = (f"{name} of step {best['step']:,}" for name, best in results["best_each"].items())
        kept_of = "each task's part at its own best: " + ", ".join(steps)
    title = "dev scores of the kept model" + (" (SYNTHETIC text)" if run.inputs.paths.synthetic else "")
    rows = [
        [task.name, name, f"{value:.4f}", "*" if name == task.metric else ""]
        for task in run.tasks
        for name, value in results["dev"].get(task.name, {}).items()
    ]
    scores = [title, table(["task", "metric", "dev", "headline"], rows)] if rows else ["no dev split: no scores"]
    return [
        *scores,
        "",
        f"{results['steps']:,} steps, {results['examples']:,} examples in {duration(results['seconds'])}: "
        f"{results['examples_per_second']:.1f} examples/s, {results['useful_tokens_per_second']:,.0f} useful tokens/s, "
        f"useful share {results['useful_token_share']:.1%}",
        f"saved model    {folder / run_files.MODEL}  ({kept_of})",
        f"results        {folder / run_files.RESULTS}, {folder / run_files.METRICS}",
        f"TensorBoard    tensorboard --logdir {folder / run_files.TENSORBOARD}",
        f"predictions    pal-dist predict {folder} --split dev",
    ]
