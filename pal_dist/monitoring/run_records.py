"""What the files of a run's folder say, read with the types that they must have: settings, log entries, results.

They are read while somebody writes them, and as version 0.1.0 wrote them; what is damaged is named.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pal_dist.config.resolve import coerce, describe, settings
from pal_dist.core.console import say
from pal_dist.core.documents import brief, load_json, load_mapping
from pal_dist.core.errors import UserError
from pal_dist.core.shapes import Count, Score, mismatches, read_as
from pal_dist.core.units import GIBIBYTE
from pal_dist.monitoring import run_files

SAID = 3
"""Damaged lines of a file that are told one by one."""


@dataclass(frozen=True)
class RecordedConfig:
    """`config.json`: what the run was told."""

    values: Mapping[str, Mapping[str, Any]]
    """Every setting, by section and name."""
    origins: Mapping[str, str] = field(default_factory=dict)
    content: Mapping[str, str] = field(default_factory=dict)
    """Hash of each corpus, `train/sst` and so on."""

    @property
    def flat(self) -> dict[str, Any]:
        """The settings by name."""
        return {name: value for section in self.values.values() for name, value in section.items()}


@dataclass(frozen=True)
class LogEntry:
    """A training entry of `metrics.jsonl`, as far as it is read."""

    step: Count
    loss: Mapping[str, Score]
    examples_per_second: float
    tokens_per_second: float
    memory_gib: float
    seconds_left: float


@dataclass(frozen=True)
class ConfusionRecord:
    """Counts of which the rows and columns have names."""

    classes: Sequence[str]
    counts: Sequence[Sequence[Count]]


@dataclass(frozen=True)
class EvaluationEntry:
    """An evaluation's entry of `metrics.jsonl`."""

    step: Count
    dev: Mapping[str, Mapping[str, Score]]
    headline: Mapping[str, str]
    dev_mean: Score
    confusion: Mapping[str, ConfusionRecord | Sequence[Sequence[Count]]] = field(default_factory=dict)
    """Of each task, as `Confusion.to_json` has it."""


@dataclass(frozen=True)
class Results:
    """`results.json`, as far as it is read."""

    dev: Mapping[str, Mapping[str, Score]]
    headline: Mapping[str, str]
    dev_mean: Score
    best_step: Count
    total_seconds: float
    seconds: float
    examples_per_second: float
    useful_token_share: float
    peak_memory_bytes: float
    steps: Count
    parameters: Count
    parameters_by_part: Mapping[str, Count]
    ranks: Count
    precision: str


def read_config(folder: Path) -> RecordedConfig:
    """The run's `config.json`. Raises UserError where it is missing, damaged, or holds what no setting can be."""
    path = folder / run_files.CONFIG
    if not path.is_file():
        raise UserError(f"{folder}: expected a run's folder, found none ({path.name} is missing)")
    config = read_as(RecordedConfig, load_mapping(path), where=str(path))
    values = {name: _as_bounded(section) for name, section in config.values.items()}
    for section in values.values():
        for name, value in section.items():
            if name in settings():
                _check_setting(name, value, path)
    return RecordedConfig(values, config.origins, config.content)


def _as_bounded(section: Mapping[str, Any]) -> dict[str, Any]:
    """Settings could once be infinite, which a gradient norm says with 0 and a time of waiting need not be."""
    values = dict(section)
    if str(values.get("max_gradient_norm")) == "inf":
        values["max_gradient_norm"] = 0.0
    if str(values.get("hang_minutes")) == "inf":
        values["hang_minutes"] = settings()["hang_minutes"].default
    return values


def _check_setting(name: str, value: Any, path: Path) -> None:
    try:
        coerce(value, settings()[name].kind)
    except (ValueError, OverflowError):
        raise UserError(f"{path}: --{name} takes {describe(settings()[name].kind)}; found {brief(value)}") from None


def read_metrics(folder: Path) -> Iterator[dict[str, Any]]:
    """The entries of a run's `metrics.jsonl`, oldest first; none where there is no such file.

    A last line that is being written just now, or that a crash cut short, is passed over; so is a damaged one, which is
    said. Entries that version 0.1.0 wrote come out as today's.
    """
    path = folder / run_files.METRICS
    if not path.is_file():
        return
    damaged = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break
            entry = _entry_of(line)
            if not isinstance(entry, str):
                yield entry
                continue
            damaged += 1
            if damaged <= SAID:
                say(f"warning: {path}: line {number} is damaged and passed over: {entry}")
    if damaged > SAID:
        say(f"warning: {path}: {damaged - SAID} more lines are damaged and passed over")


def _entry_of(line: bytes) -> dict[str, Any] | str:
    """An entry as today's, or what is wrong with it."""
    try:
        entry = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        return f"not readable as JSON: {error}"
    if not isinstance(entry, dict):
        return f"expected a mapping, found {brief(entry)}"
    entry = _as_today(entry)
    kind = EvaluationEntry if "dev" in entry else LogEntry
    problem = next(mismatches(entry, kind), None) or _problem_of_headline(entry) or _problem_of_confusion(entry)
    return problem or _null_as_nan(entry)


def read_results(folder: Path) -> dict[str, Any]:
    """A finished run's `results.json`; one that version 0.1.0 wrote comes out as today's.

    Raises UserError where it is missing or damaged.
    """
    path = folder / run_files.RESULTS
    if not path.is_file():
        raise UserError(f"{folder}: expected a run's folder, found none ({path.name} is missing)")
    results = _as_today(load_json(path)) if path.stat().st_size else {}
    problems = list(mismatches(results, Results))
    if not problems and (problem := _problem_of_headline(results)):
        problems = [problem]
    if problems:
        raise UserError("\n".join(f"{path}: {problem}" for problem in problems))
    return _null_as_nan(results)


def _problem_of_headline(entry: Mapping[str, Any]) -> str | None:
    for task, metric in entry.get("headline", {}).items():
        if task in entry["dev"] and metric not in entry["dev"][task]:
            return f"`headline.{task}` is {metric!r}, of which `dev` has no value"
    return None


def _problem_of_confusion(entry: Mapping[str, Any]) -> str | None:
    """Each has as many columns as rows."""
    for task, value in entry.get("confusion", {}).items():
        counts = value["counts"] if isinstance(value, dict) else value
        size = len(value["classes"]) if isinstance(value, dict) else len(counts)
        if len(counts) != size or any(len(row) != size for row in counts):
            return f"`confusion.{task}` has rows of other lengths than {size}"
    return None


def _as_today(entry: Any) -> Any:
    """Version 0.1.0 gave memory in 1e9 bytes, and did not name the headline metrics: they came first."""
    if not isinstance(entry, dict):
        return entry
    memory, dev = entry.get("memory_gigabytes"), entry.get("dev")
    if isinstance(memory, float):
        entry["memory_gib"] = entry.pop("memory_gigabytes") * 1e9 / GIBIBYTE
    if "headline" not in entry and not list(mismatches(dev, Mapping[str, Mapping[str, Any]])):
        entry["headline"] = {task: next(iter(values)) for task, values in entry["dev"].items() if values}
    return entry


def _null_as_nan(entry: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN: a score that is null is none that is a number."""
    for scores in (entry.get("loss", {}), *entry.get("dev", {}).values()):
        scores.update({name: math.nan for name, value in scores.items() if value is None})
    if "dev_mean" in entry and entry["dev_mean"] is None:
        entry["dev_mean"] = math.nan
    return entry
