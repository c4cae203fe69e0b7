"""Run folders read, and put together into groups that differ in nothing but the seed."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pal_dist.config.resolve import format_value, names_where, settings
from pal_dist.config.schema import json_value
from pal_dist.core.errors import UserError
from pal_dist.monitoring import run_files
from pal_dist.monitoring.status import Status, status_of

MEAN = "mean"
"""The column of the mean over tasks."""

Curve = dict[int, float]
"""Value by step."""


@dataclass(frozen=True)
class Run:
    """What a run's folder says."""

    folder: Path
    values: Mapping[str, Any]
    """Every setting; those that an older version did not know have their default."""
    origins: Mapping[str, str]
    content: Mapping[str, str]
    """Hash of each corpus, `train/sst` and so on."""
    status: Status
    results: Mapping[str, Any] | None
    """results.json; None while the run is unfinished."""
    losses: Mapping[str, Curve]
    dev: Mapping[str, Curve]
    """Headline metric of each task, and their mean under `mean`."""
    confusion: Mapping[int, Mapping[str, list[list[int]]]] = field(default_factory=dict)
    """Counts [label][prediction] of each task, by step."""

    @property
    def finished(self) -> bool:
        return self.results is not None

    @property
    def headline(self) -> dict[str, str]:
        """Name of each task's headline metric. Finished runs only."""
        assert self.results is not None
        return dict(self.results.get("headline", {}))

    @property
    def scores(self) -> dict[str, float]:
        """Headline dev metric of each task and, of several, their mean; of the kept model. Finished runs only."""
        assert self.results is not None
        return _with_mean(self.results["dev"], self.headline, self.results["dev_mean"])

    @property
    def mean(self) -> float:
        """Of the tasks' headline dev metrics, of the kept model; minus infinity without any. Finished runs only."""
        assert self.results is not None
        return float(self.results["dev_mean"]) if self.results["dev"] else -math.inf


def _with_mean(dev: Mapping[str, Mapping[str, float]], headline: Mapping[str, str], mean: float) -> dict[str, float]:
    """Each task's headline metric; the mean says something only where there are several."""
    scores = {task: float(dev[task][metric]) for task, metric in headline.items() if task in dev}
    return scores | ({MEAN: float(mean)} if len(scores) > 1 else {})


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seeds only."""

    name: str
    runs: tuple[Run, ...]
    """All of them, unfinished ones too."""
    counted: tuple[Run, ...]
    """Finished, each seed once."""

    @property
    def drawn(self) -> tuple[Run, ...]:
        """The runs behind the group's curves: those that are counted, or the unfinished ones where none is."""
        return self.counted or self.runs

    def scores(self, column: str) -> list[float]:
        return [run.scores[column] for run in self.counted if column in run.scores]

    @property
    def best(self) -> Run | None:
        """The run of the best mean, the first of equals; one whose mean is not a number only where all are so."""

        def mean(run: Run) -> float:
            return -math.inf if math.isnan(run.mean) else run.mean

        return max(self.counted, key=mean, default=None)


def find_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs named, and those anywhere below the folders named; each once, in the order given, then by name.

    Raises UserError for a folder without any run.
    """
    runs_by_folder: dict[Path, Run] = {}
    for place in folders:
        if not place.is_dir():
            raise UserError(f"{place}: there is no such folder")
        is_run = (place / run_files.STATUS).is_file() or (place / run_files.CONFIG).is_file()
        below = sorted(place.rglob(run_files.STATUS), key=_natural)
        inside = [place] if is_run else [path.parent for path in below]
        if not inside:
            raise UserError(
                f"{place}: expected a run's folder or a folder of runs, found neither (no {run_files.STATUS} in it)"
            )
        for folder in inside:
            if folder.resolve() not in runs_by_folder:
                runs_by_folder[folder.resolve()] = read_run(folder)
    return list(runs_by_folder.values())


def _natural(path: Path) -> list[tuple[int, str]]:
    """runs/2 before runs/10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", str(path))]


def read_run(folder: Path) -> Run:
    """Raises UserError where the folder is no run's, or what it holds is damaged."""
    status = status_of(folder)
    config = _read(folder / run_files.CONFIG, _read_config)
    try:
        sections = config["values"].values()
        values = {name: json_value(value) for section in sections for name, value in section.items()}
    except (KeyError, AttributeError):
        raise UserError(f"{folder / run_files.CONFIG}: expected the settings of a run, found something else") from None
    defaults = {name: json.loads(json.dumps(json_value(setting.default))) for name, setting in settings().items()}
    results = _read(folder / run_files.RESULTS, run_files.read_results) if status.verdict == "finished" else None
    losses: dict[str, Curve] = {}
    dev: dict[str, Curve] = {}
    confusion = {}
    for entry in run_files.read_metrics(folder):
        for task, value in entry.get("loss", {}).items():
            losses.setdefault(task, {})[entry["step"]] = value
        if entry.get("dev"):
            for name, value in _with_mean(entry["dev"], entry["headline"], entry["dev_mean"]).items():
                dev.setdefault(name, {})[entry["step"]] = value
            confusion[entry["step"]] = entry.get("confusion", {})
    return Run(
        folder,
        defaults | values,
        config.get("origins", {}),
        config.get("content", {}),
        status,
        results,
        losses,
        dev,
        confusion,
    )


def _read_config(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / run_files.CONFIG).read_text(encoding="utf-8")))


def _read(path: Path, read: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """What `read` makes of the path's folder. Raises UserError where the file is missing or damaged."""
    try:
        return read(path.parent)
    except FileNotFoundError:
        raise UserError(f"{path.parent}: expected a run's folder, found none ({path.name} is missing)") from None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not readable as JSON: {error}") from None


def _key(run: Run) -> str:
    values = {name: value for name, value in run.values.items() if name not in names_where(same_group=True)}
    return json.dumps([values, run.content], sort_keys=True)


def differing(runs: Sequence[Run]) -> list[str]:
    """Settings, of those that make a group, in which the runs are not all alike."""
    names = dict.fromkeys(name for run in runs for name in run.values if name not in names_where(same_group=True))
    return [name for name in names if any(run.values.get(name) != runs[0].values.get(name) for run in runs)]


def group_runs(runs: Sequence[Run]) -> tuple[list[Group], list[str]]:
    """(groups in the order of their first runs, what the reader has to know of them)."""
    members: dict[str, list[Run]] = {}
    for run in runs:
        members.setdefault(_key(run), []).append(run)
    names = _names([alike[0] for alike in members.values()], differing(runs))
    groups, notes = [], []
    for name, alike in zip(names, members.values(), strict=True):
        by_seed: dict[Any, Run] = {}
        for run in alike:
            first = by_seed.setdefault(run.values["seed"], run) if run.finished else run
            if first is not run:
                notes.append(
                    f"{run.folder} repeats {first.folder}: the same settings and seed {run.values['seed']}. It says "
                    f"nothing new of the noise, and is not counted."
                )
        groups.append(Group(name, tuple(alike), tuple(by_seed.values())))
        if unfinished := [str(run.folder) for run in alike if not run.finished]:
            notes.append(f"Unfinished, not counted: {', '.join(unfinished)}.")
    notes += [
        f"Not all groups saw the same tokens as the dev split of {corpus.removeprefix('dev/')}: other files, another "
        f"vocabulary or another length; scores differ for that reason too."
        for corpus in dict.fromkeys(name for run in runs for name in run.content if name.startswith("dev/"))
        if len({run.content[corpus] for run in runs if corpus in run.content}) > 1
    ]
    return groups, notes


def setting_text(value: Any) -> str:
    """A setting's value for a reader: what was left to pal-dist is `default`."""
    return "default" if value is None else format_value(value)


def _names(firsts: Sequence[Run], names: Sequence[str]) -> list[str]:
    """One group's settings, as far as they tell it from the others."""
    names_of_groups = [
        " ".join(f"{name}={_short(name, run, firsts)}" for name in names) or "all runs" for run in firsts
    ]
    if len(set(names_of_groups)) == len(names_of_groups):
        return names_of_groups
    return [
        f"{text} data={run.values['data_dir']}#{number}"
        for number, (text, run) in enumerate(zip(names_of_groups, firsts, strict=True), 1)
    ]


def _short(name: str, run: Run, firsts: Sequence[Run]) -> str:
    """A path's last part, where that is enough to tell it from the others."""
    texts = {setting_text(each.values.get(name)) for each in firsts}
    text = setting_text(run.values.get(name))
    if "/" not in text or len({each.rstrip("/").rsplit("/", 1)[-1] for each in texts}) < len(texts):
        return text
    return ",".join(part.rstrip("/").rsplit("/", 1)[-1] for part in text.split(","))
