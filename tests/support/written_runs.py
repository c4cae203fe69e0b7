"""Folders of finished runs, written by the report that training writes them with, but without training."""

from __future__ import annotations

import json
import statistics
import zlib
from pathlib import Path

import numpy as np

from pal_dist import __version__
from pal_dist.config.resolve import resolve
from pal_dist.core.atomic_io import write_json
from pal_dist.monitoring import run_files
from pal_dist.monitoring.report import RunReport
from pal_dist.tasks.registry import TASKS

TASK_NAMES = ("sst", "para", "sts")

SAMPLINGS = ("round_robin", "proportional")

ROUND_ROBIN, PROPORTIONAL = (f"sampling={name}" for name in SAMPLINGS)
"""Names of the groups that `write_runs` makes."""

SEEDS = (0, 1)

STEPS, EVERY = 6, 2
"""Optimizer steps, and how many lie between two log entries, and between two evaluations."""


def write_runs(folder: Path) -> Path:
    """Two samplings, two seeds each."""
    for sampling in SAMPLINGS:
        for seed in SEEDS:
            write_run(folder / f"{sampling}_{seed}", sampling=sampling, seed=seed)
    return folder


def write_run(folder: Path, *, sampling: str = "round_robin", seed: int = 0) -> Path:
    """A finished run of six steps and three evaluations; what it scored depends on sampling and seed alone."""
    folder.mkdir(parents=True)
    flags = {"data_dir": "data", "model": "encoder", "output_dir": str(folder), "max_steps": STEPS, "log_every": EVERY}
    flags |= {"evaluate_every": str(EVERY), "learning_rate": 1e-3, "sampling": sampling, "seed": seed}
    content = {f"{split}/{task}": f"{task}-{split}-hash" for split in ("train", "dev") for task in TASK_NAMES}
    values = resolve(flags)[0].to_dict()
    write_json(
        folder / run_files.CONFIG, {"pal_dist": __version__, "values": values, "origins": {}, "content": content}
    )
    random = np.random.default_rng([seed, zlib.crc32(sampling.encode())])
    headline = {task: TASKS[task].metric for task in TASK_NAMES}
    report = RunReport(folder, step=0, total_steps=STEPS, job={})
    evaluations = {}
    for step in range(EVERY, STEPS + 1, EVERY):
        report.progress(step, STEPS, _log_entry({task: float(random.uniform(0.5, 2)) for task in TASK_NAMES}))
        dev = {task: {metric: float(random.uniform(0.3, 0.9))} for task, metric in headline.items()}
        for task in ("sst", "para"):
            report.confusion(step, task, random.integers(0, 9, (2, 2)))
        evaluations[step] = dev
        report.evaluation(step, dev, _mean(dev), headline=headline)
    report.set_state("finished", STEPS)
    report.close()
    best_step = max(evaluations, key=lambda step: _mean(evaluations[step]))
    write_json(folder / run_files.RESULTS, _results(evaluations[best_step], headline, best_step))
    return folder


def _mean(dev: dict[str, dict[str, float]]) -> float:
    return statistics.fmean(value for metrics in dev.values() for value in metrics.values())


def _log_entry(losses: dict[str, float]) -> dict[str, object]:
    return {
        "loss": losses,
        "learning_rate": 1e-3,
        "gradient_norm": 1.0,
        "examples_per_second": 100.0,
        "tokens_per_second": 1000.0,
        "useful_token_share": 0.9,
        "memory_gib": 0.5,
        "seconds_left": 1.0,
    }


def _results(dev: dict[str, dict[str, float]], headline: dict[str, str], best_step: int) -> dict[str, object]:
    return {
        "dev": dev,
        "headline": headline,
        "dev_mean": _mean(dev),
        "best_step": best_step,
        "best_each": {task: {"step": best_step, "value": dev[task][headline[task]]} for task in dev},
        "examples_per_second": 100.0,
        "useful_tokens_per_second": 900.0,
        "useful_token_share": 0.9,
        "steps": STEPS,
        "examples": 144,
        "seconds": 1.0,
        "evaluation_seconds": 0.5,
        "total_seconds": 2.0,
        "parameters": 1500,
        "parameters_by_part": {"total": 1500, "trained": 1500, "shared": 1200} | dict.fromkeys(dev, 100),
        "peak_memory_bytes": 2**29,
        "precision": "fp32",
        "ranks": 1,
        "features_cached": False,
    }


def rewrite(path: Path, **changes: object) -> None:
    """Change some of the values of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def set_scores(folder: Path, **scores: float) -> None:
    """What a run would have written, had it scored so."""
    dev = {task: {"accuracy": value} for task, value in scores.items()}
    rewrite(folder / run_files.RESULTS, dev=dev, dev_mean=statistics.fmean(scores.values()))
