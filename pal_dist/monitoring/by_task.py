"""One number for each task, on one line: all of them, or of many tasks the mean and the worst."""

from __future__ import annotations

import math
from collections.abc import Mapping

MOST_TASKS = 8
"""Tasks that a line names one by one; metrics.jsonl has all of them, always."""

WORST = 3
"""Tasks that a line names of more."""


def losses_text(losses: Mapping[str, float]) -> str:
    """`sst 1.250 para 0.693`, or the mean and the highest."""
    texts = {task: f"{task} {value:.3f}" for task, value in losses.items()}
    if len(losses) <= MOST_TASKS:
        return " ".join(texts.values())
    mean = sum(losses.values()) / len(losses)
    worst = sorted(losses, key=lambda task: -_below_all(losses[task], -1))
    return f"mean {mean:.3f} of {len(losses)} tasks, highest {' '.join(texts[task] for task in worst[:WORST])}"


def scores_text(metrics: Mapping[str, Mapping[str, float]], headline: Mapping[str, str]) -> str:
    """`sst accuracy 0.5100  sts pearson 0.7000`, or the lowest. `headline` names each task's metric."""
    scores = {task: metrics[task][name] for task, name in headline.items()}
    texts = {task: f"{task} {name} {scores[task]:.4f}" for task, name in headline.items()}
    if len(scores) <= MOST_TASKS:
        return "  ".join(texts.values())
    worst = sorted(scores, key=lambda task: _below_all(scores[task], 1))
    return f"lowest of {len(scores)} tasks: {'  '.join(texts[task] for task in worst[:WORST])}"


def _below_all(value: float, sign: int) -> float:
    """What is no number is worse than all."""
    return -sign * math.inf if math.isnan(value) else value
