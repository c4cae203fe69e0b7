"""The tables of a comparison, as text in cells: the page and the Markdown file show the same ones."""

from __future__ import annotations

import math
import shlex
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pal_dist.config.resolve import format_value, settings
from pal_dist.core.console import duration
from pal_dist.core.units import GIBIBYTE
from pal_dist.monitoring.compare.runs import MEAN, Group, Run, setting_text
from pal_dist.monitoring.compare.significance import LEVEL, Difference, holm, welch

EXCEEDS, SUGGESTIVE, WITHIN = "exceeds seed noise", "suggestive: try more seeds", "within seed noise"

NONE = "–"
"""A cell without a value."""


class Cell(NamedTuple):
    text: str
    strong: bool = False


@dataclass(frozen=True)
class Table:
    title: str
    header: list[str]
    rows: list[list[Cell]]
    note: str = ""

    def markdown(self) -> str:
        rows = [[f"**{cell.text}**" if cell.strong else cell.text for cell in row] for row in self.rows]
        lines = [self.header, ["---"] * len(self.header), *rows]
        return "\n".join("| " + " | ".join(_flat(text) for text in line) + " |" for line in lines)


def _flat(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def columns_of(groups: Sequence[Group]) -> list[str]:
    """Tasks that any counted run has a score of, in the runs' order, then the mean."""
    names = dict.fromkeys(name for group in groups for run in group.counted for name in run.scores)
    return [name for name in names if name != MEAN] + [MEAN] * (MEAN in names)


def headlines(groups: Sequence[Group]) -> dict[str, str]:
    """Name of each task's headline metric."""
    return {task: name for group in groups for run in group.counted for task, name in run.headline.items()}


def numbers(values: Sequence[float], form: Callable[[float], str]) -> str:
    """`mean ± sample standard deviation`; one value alone; a dash for none."""
    if not values:
        return NONE
    if not all(map(math.isfinite, values)):
        return "not a number"
    mean = form(statistics.fmean(values))
    return mean if len(values) == 1 else f"{mean} ± {form(statistics.stdev(values))}"


def score(value: float) -> str:
    return f"{value:.4f}"


def comparable(column: str, one: Group, other: Group) -> bool:
    """Both have the column; a mean is compared only over the same tasks."""
    if not one.scores(column) or not other.scores(column):
        return False
    return column != MEAN or set(one.counted[0].scores) == set(other.counted[0].scores)


def best_beyond_noise(column: str, groups: Sequence[Group]) -> Group | None:
    """The group of the highest mean, if it exceeds every other one by more than noise (Holm within the column)."""
    having = [group for group in groups if group.scores(column)]
    if len(having) < 2 or not all(math.isfinite(value) for group in having for value in group.scores(column)):
        return None
    best = max(having, key=lambda group: statistics.fmean(group.scores(column)))
    others = [group for group in having if group is not best]
    if not all(comparable(column, best, other) for other in others):
        return None
    ps = [welch(best.scores(column), other.scores(column)).p for other in others]
    tested = [p for p in ps if p is not None]
    return best if len(tested) == len(ps) and max(holm(tested)) < LEVEL else None


def scores_table(groups: Sequence[Group]) -> Table:
    columns, metrics = columns_of(groups), headlines(groups)
    best = {column: best_beyond_noise(column, groups) for column in columns}
    rows = [
        [Cell(group.name), Cell(str(len(group.counted)))]
        + [Cell(numbers(group.scores(column), score), group is best[column]) for column in columns]
        for group in groups
    ]
    header = ["group", "seeds", *(f"{name} {metrics[name]}" if name in metrics else name for name in columns)]
    note = (
        "Dev scores of the kept model of each run: mean ± sample standard deviation over seeds. Bold: higher than "
        f"every other group beyond the noise of seeds (Welch's t-tests, Holm's correction in the column, {LEVEL:.0%})."
    )
    return Table("Dev scores", header, rows, note)


def differences(groups: Sequence[Group], baseline: Group) -> list[tuple[Group, str, Difference, float | None, str]]:
    """(group, column, difference from the baseline, p after Holm's correction, verdict) of every comparison."""
    compared = [
        (group, column, welch(group.scores(column), baseline.scores(column)))
        for group in groups
        if group is not baseline
        for column in columns_of(groups)
        if comparable(column, group, baseline)
    ]
    corrected = iter(holm([one.p for _, _, one in compared if one.p is not None]))
    rows = []
    for group, column, one in compared:
        p = None if one.p is None else next(corrected)
        rows.append((group, column, one, p, verdict_of(one, p)))
    return rows


def verdict_of(one: Difference, corrected: float | None) -> str:
    """A difference that only the correction for testing many takes back is neither shown nor to be forgotten."""
    if one.p is None or corrected is None:
        return one.why
    return EXCEEDS if corrected < LEVEL else SUGGESTIVE if one.p < LEVEL else WITHIN


def differences_table(groups: Sequence[Group], baseline: Group) -> Table:
    compared = differences(groups, baseline)
    tested = sum(p is not None for *_, p, _ in compared)
    rows = [
        [
            Cell(group.name),
            Cell(column),
            Cell("not a number" if math.isnan(one.value) else f"{one.value:+.4f}"),
            Cell(NONE if one.low is None else f"{one.low:+.4f} to {one.high:+.4f}"),
            Cell(_p(one.p)),
            Cell(_p(p)),
            Cell(verdict, verdict == EXCEEDS),
        ]
        for group, column, one, p, verdict in compared
    ]
    note = (
        f"Baseline: {baseline.name}. Welch's two-sided t-test over seeds; {tested} of {len(compared)} differences can "
        f"be tested, and Holm's correction makes up for testing {tested}: the verdict is that of the corrected p at "
        f'{LEVEL:.0%}, and "suggestive" where only p itself is below it. The intervals are of each difference alone. '
        f"With few seeds only large differences can be told."
    )
    header = ["group", "score", "difference", "95 % interval", "p", "p, corrected", "verdict"]
    return Table("Differences from the baseline", header, rows, note)


def _p(p: float | None) -> str:
    return NONE if p is None else "< 0.0001" if p < 0.0001 else f"{p:.4f}"


COSTS: dict[str, tuple[str, Callable[[float], str]]] = {
    "wall clock": ("total_seconds", duration),
    "training": ("seconds", duration),
    "examples/s": ("examples_per_second", "{:,.1f}".format),
    "useful tokens": ("useful_token_share", "{:.1%}".format),
    "peak GiB": ("peak_memory_bytes", lambda value: f"{value / GIBIBYTE:.2f}"),
    "steps": ("steps", "{:,.0f}".format),
    "parameters": ("parameters", "{:,.0f}".format),
}
"""Column -> (key of results.json, how a value is written)."""


def cost_table(groups: Sequence[Group]) -> Table:
    counted = [group for group in groups if group.counted]
    parts = dict.fromkeys(
        name for group in counted for name in (group.counted[0].results or {})["parameters_by_part"] if name != "total"
    )
    rows = []
    for group in counted:
        results = [run.results for run in group.counted if run.results is not None]
        cells = [
            Cell(numbers([result[key] for result in results], form))
            if _varies(results, key)
            else Cell(form(results[0][key]))
            for key, form in COSTS.values()
        ]
        cells += [Cell(_each(result["parameters_by_part"].get(part) for result in results)) for part in parts]
        cells += [Cell(_each(result[key] for result in results)) for key in ("ranks", "precision")]
        rows.append([Cell(group.name), *cells])
    header = [
        "group",
        *COSTS,
        *(name if name in ("trained", "shared") else f"{name}'s own" for name in parts),
        "ranks",
        "precision",
    ]
    note = (
        "Mean ± sample standard deviation over seeds where seeds differ. Wall clock is of the process that ended the "
        "run, start to end; training leaves out evaluation. Peak memory is of the device, on a CPU of the process."
    )
    return Table("Cost", header, rows, note)


def _varies(results: Sequence[Any], key: str) -> bool:
    return len({result[key] for result in results}) > 1


def _each(values: Iterable[Any]) -> str:
    """The different values, each once."""
    texts = (f"{value:,}" if isinstance(value, int) else NONE if value is None else value for value in values)
    return ", ".join(dict.fromkeys(texts))


def runs_table(groups: Sequence[Group]) -> Table:
    rows = []
    for group in groups:
        for run in group.runs:
            entry = run.status.entry
            mean = score(run.mean) if run.finished and run.scores else NONE
            state = run.status.verdict + (f": {entry.error.splitlines()[0]}" if entry.error else "")
            rows.append(
                [
                    Cell(str(run.folder)),
                    Cell(group.name),
                    Cell(format_value(run.values["seed"])),
                    Cell(state),
                    Cell(f"{entry.step:,} of {entry.total_steps:,}"),
                    Cell(mean),
                ]
            )
    return Table("Runs", ["folder", "group", "seed", "state", "step", "dev mean"], rows)


def settings_table(title: str, names: Sequence[str], groups: Sequence[Group]) -> Table:
    """Groups in columns where they differ; one column where `groups` is one."""
    header = ["setting", *(group.name for group in groups)] if len(groups) > 1 else ["setting", "value"]
    rows = [[Cell(name), *(Cell(setting_text(group.runs[0].values.get(name))) for group in groups)] for name in names]
    return Table(title, header, rows)


def command(run: Run) -> str:
    """What trains the run again: the settings that were given, or are no longer the default."""
    parts = ["pal-dist", "train"]
    for name, value in run.values.items():
        setting = settings().get(name)
        default = setting is not None and format_value(setting.default) == format_value(value)
        if name != "resume" and (run.origins.get(name, "default") != "default" or not default):
            parts += [f"--{name}", format_value(value)]
    ranks = (run.results or {}).get("ranks", 1)
    return shlex.join(parts) + (f"   # on {ranks} processes" if ranks > 1 else "")
