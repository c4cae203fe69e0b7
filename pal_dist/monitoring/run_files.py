"""The files of a run's folder: their names, and how `metrics.jsonl` is read while somebody writes it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pal_dist.core.units import GIBIBYTE

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
MEMORY_PICTURE = "memory.png"
"""`pal-dist profile`: memory over a step."""
PROFILE = "profile.json"
"""`pal-dist profile`: what the step needed, beside what was planned."""
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

    A last line that is being written just now, or that a crash cut short, is passed over. Entries that version 0.1.0
    wrote come out as today's.
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
                yield _as_today(entry)


def read_results(folder: Path) -> dict[str, Any]:
    """A finished run's `results.json`; one that version 0.1.0 wrote comes out as today's.

    Raises OSError and ValueError as reading and parsing do.
    """
    results = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    return _as_today(dict(results))


def _as_today(entry: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN: a score that is null is none that is a number. Version 0.1.0 gave memory in 1e9 bytes, and did
    not name the headline metrics: they came first."""
    for scores in (entry.get("loss", {}), *entry.get("dev", {}).values()):
        scores.update({name: math.nan for name, value in scores.items() if value is None})
    if "dev_mean" in entry and entry["dev_mean"] is None:
        entry["dev_mean"] = math.nan
    if "memory_gigabytes" in entry:
        entry["memory_gib"] = entry.pop("memory_gigabytes") * 1e9 / GIBIBYTE
    if entry.get("dev") and "headline" not in entry:
        entry["headline"] = {task: next(iter(values)) for task, values in entry["dev"].items() if values}
    return entry
