"""What is said before the first step and after the last one: the run's arithmetic and its results."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import psutil

from pal_dist import __version__
from pal_dist.core.console import duration, table
from pal_dist.models.multi_task import MultiTaskBert
from pal_dist.training.feature_cache import FeatureCorpus
from pal_dist.training.trainer import Trainer


def since_start() -> float:
    """Seconds since this process started, imports included."""
    return time.time() - psutil.Process().create_time()


def start_lines(trainer: Trainer, model: MultiTaskBert, *, resumed: Path | None, memory: list[str]) -> list[str]:
    """The arithmetic of the run, said before it starts; `memory` is what was planned and proved."""
    run, engine, sampling = trainer.run, trainer.engine, trainer.schedule.sampling
    names = tuple(task.name for task in trainer.tasks)
    lines = [f"pal-dist {__version__}: run folder {trainer.folder}"]
    if job := engine.group.job:
        lines.append(f"Slurm job {job['slurm_job']}, started again {job['slurm_restarts']} times (SLURM_RESTART_COUNT)")
    if run.data.data_dir == "builtin":
        lines.append(
            "data: the built-in SYNTHETIC corpus; its scores show that training works, nothing about real text"
        )
    for name, corpus in zip(names, trainer.train, strict=True):
        splits = [corpus, *([trainer.dev[name]] if name in trainer.dev else [])]
        for split in splits:
            lines += [f"warning: {line}" for line in split.report.lines()]
        sizes = " + ".join(f"{len(split):,} {kind}" for split, kind in zip(splits, ("train", "dev"), strict=False))
        skipped = sum(split.report.bad_rows for split in splits)
        cut = sum(split.report.truncated for split in splits)
        lines.append(
            f"data: {name}: {sizes} examples, {corpus.lengths.mean():.1f} tokens on average; {cut:,} cut to "
            f"{run.data.max_length}, {skipped:,} bad rows skipped"
        )
    counts = trainer.parameters
    lines.append(
        f"model: {run.model.model} with adapter `{run.model.adapter}`, heads read `{model.config.pooling}`: "
        f"{counts['total']:,} parameters, {counts['trained']:,} trained ({run.train.mode})"
    )
    for task in trainer.tasks:
        if counts[task.name]:
            lines.append(f"model: {task.name} alone: {counts[task.name]:,} parameters (adapter and head)")
    lines.append(
        f"precision: {engine.precision.name} ({engine.precision.reason}) on {engine.ranks} x {engine.device.type}"
    )
    if engine.ranks > 1 or engine.strategy.kind != "replicated":
        lines.append(f"strategy: {engine.strategy.name} over {engine.ranks} ranks")
    lines += memory
    warmup = run.optimizer.warmup
    rate = f"learning rate: peak {trainer.peak_rate:g}"
    if run.optimizer.learning_rate is None:
        rate += f" (the default for {run.train.mode} at width {model.config.hidden_size})"
    then = {"linear": "falling to 0", "constant": "staying there"}[run.optimizer.schedule]
    lines.append(f"{rate}, rising over the first {warmup:.0%} of steps, then {then}; {run.optimizer.optimizer}")
    per_step = [len(rows) for _, rows in next(trainer.schedule.steps(0, 1))]
    share, micro = planned_share(trainer)
    each = f"at most {trainer.state.tokens_per_micro_batch:,} tokens each, {share:.1%} useful"
    lines += [
        f"one step: {' + '.join(map(str, per_step))} examples = {sum(per_step)}, in about {micro:.1f} micro-batches "
        f"on each of {engine.ranks} ranks, {'of cached features' if features_are_cached(trainer) else each}",
        f"steps: {sampling.describe_epoch(names)}",
        f"steps: {trainer.total_steps:,} in all" + (f"; going on after step {trainer.state.step:,}" if resumed else ""),
        f"ready {since_start():.1f} s after the process started",
    ]
    return lines


def features_are_cached(trainer: Trainer) -> bool:
    """Whether steps serve what the heads read, and no tokens."""
    return all(isinstance(corpus, FeatureCorpus) for corpus in trainer.train)


def planned_share(trainer: Trainer, steps: int = 50) -> tuple[float, float]:
    """(useful share of tokens, micro-batches per rank and step), looked up in the first steps' cuts."""
    useful = tokens = batches = 0
    steps = min(steps, trainer.total_steps)
    multiple = trainer.engine.multiple
    for served in trainer.schedule.steps(0, steps):
        for micro in trainer.micro_batches(served):
            lengths = trainer.schedule.lengths[micro.task][micro.rows]
            useful += int(lengths.sum())
            tokens += len(lengths) * -(-int(lengths.max()) // multiple) * multiple
            batches += 1
    return useful / tokens, batches / steps


def collect_results(trainer: Trainer) -> dict[str, Any]:
    """What `results.json` holds. Scores are those of the kept model: the one with the best dev mean, or of its
    parts, each task's at its own best."""
    state, counts = trainer.state, trainer.parameters
    return {
        "dev": state.best_metrics,
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
        "parameters": counts["total"],
        "parameters_by_part": counts,
        "peak_memory_bytes": trainer.engine.memory(),
        "precision": trainer.engine.precision.name,
        "ranks": trainer.engine.ranks,
        "features_cached": features_are_cached(trainer),
    }


def summary(results: dict[str, Any], trainer: Trainer) -> list[str]:
    """The table at the end, and where everything lies."""
    folder, synthetic = trainer.folder, trainer.run.data.data_dir == "builtin"
    kept = f"best dev mean, step {results['best_step']:,}"
    if trainer.run.train.keep_best == "parts":
        steps = (f"{name} of step {found['step']:,}" for name, found in results["best_each"].items())
        kept = "each task's part at its own best: " + ", ".join(steps)
    title = "dev scores of the kept model" + (" (SYNTHETIC text)" if synthetic else "")
    rows = [
        [task.name, name, f"{value:.4f}", "*" if name == task.metric else ""]
        for task in trainer.tasks
        for name, value in results["dev"].get(task.name, {}).items()
    ]
    lines = [title, table(["task", "metric", "dev", "headline"], rows)] if rows else ["no dev split: no scores"]
    lines += [
        "",
        f"{results['steps']:,} steps, {results['examples']:,} examples in {duration(results['seconds'])}: "
        f"{results['examples_per_second']:.1f} examples/s, {results['useful_tokens_per_second']:,.0f} useful tokens/s, "
        f"useful share {results['useful_token_share']:.1%}",
        f"saved model    {folder / 'model'}  ({kept})",
        f"results        {folder / 'results.json'}, {folder / 'metrics.jsonl'}",
        f"TensorBoard    tensorboard --logdir {folder / 'tensorboard'}",
        f"predictions    pal-dist predict {folder} --split dev",
    ]
    return lines
