"""The files of a run's folder: their names, and how `metrics.jsonl` is read while somebody writes it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CONFIG = "config.json"
"""Every setting with its origin, and the hashes of the data."""
STATUS = "status.json"
"""What the run is doing now, or how it ended."""
METRICS = "metrics.jsonl"
"""A line for each log entry and each evaluation."""
RESULTS = "results.json"
"""Written once, at the end."""
MEMORY = "memory.json"
"""The memory plan and what proved it."""
TENSORBOARD = "tensorboard"
CHECKPOINTS = "checkpoints"
MODEL = "model"
"""The kept model, as Transformers saves one."""
BEST = "best"
"""With --keep_best each: below it each task's own best model."""
PREDICTIONS = "predictions"
STOP = "stop"
"""A file of this name stops the run."""


def read_metrics(folder: Path) -> Iterator[dict[str, Any]]:
    """The entries of a run's `metrics.jsonl`, oldest first; none where there is no such file.

    A last line that is being written just now, or that a crash cut short, is passed over.
    """
    path = folder / METRICS
    if not path.is_file():
        return
    with open(path, encoding="utf-8") as file:
        for line in file:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict) and line.endswith("\n"):
                yield entry
