"""The verb `compare`: run folders in, one page and one Markdown file out. Needs neither torch nor a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pal_dist import __version__
from pal_dist.config.resolve import names_where
from pal_dist.core.atomic_io import explain_full_disk, write_text
from pal_dist.core.errors import UserError
from pal_dist.core.extras import require
from pal_dist.core.suggest import nearest
from pal_dist.monitoring.compare.figures import draw_curves, line_styles
from pal_dist.monitoring.compare.runs import Group, Run, differing, find_runs, group_runs
from pal_dist.monitoring.compare.tables import (
    Table,
    command,
    cost_table,
    differences_table,
    headlines,
    runs_table,
    scores_table,
    settings_table,
)

SYNTHETIC = "SYNTHETIC text (the built-in corpus): these scores show that training works, nothing about real text."


@dataclass(frozen=True)
class Comparison:
    """What the page says."""

    title: str
    groups: list[Group]
    baseline: Group
    notes: list[str]
    tables: list[Table]
    """Dev scores, differences, cost: as far as there is anything to say."""

    @property
    def runs(self) -> list[Run]:
        return [run for group in self.groups for run in group.runs]

    def markdown(self) -> str:
        parts = [f"# {self.title}", *self.notes]
        for table in [*self.tables, runs_table(self.groups)]:
            parts += [f"## {table.title}", table.markdown(), table.note]
        return "\n\n".join(part for part in parts if part) + "\n"

    def html(self) -> str:
        jinja2 = require("jinja2", extra="compare", what="compare")
        runs, differ = self.runs, differing(self.runs)
        common = [name for name in runs[0].values if name not in differ and name not in names_where(same_group=True)]
        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("pal_dist.monitoring.compare", "."),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        return environment.get_template("page.html.jinja").render(
            comparison=self,
            version=__version__,
            figures=draw_curves(self.groups, headlines(self.groups)),
            legend=list(zip(self.groups, line_styles(self.groups), strict=True)),
            runs=runs_table(self.groups),
            differ=settings_table("Settings that differ", differ, self.groups) if differ else None,
            common=settings_table("Settings in common", common, self.groups[:1]),
            confusions=[(group, group.best, counts) for group in self.groups if (counts := confusions(group))],
            commands=[(run, command(run)) for run in runs],
        )


def confusions(group: Group) -> dict[str, list[list[int]]]:
    """Counts [label][prediction] of each classification task, of the kept model of the group's best run."""
    best = group.best
    return dict(best.confusion.get(best.results["best_step"], {})) if best is not None and best.results else {}


def build_comparison(folders: Sequence[Path], *, title: str | None = None, baseline: str | None = None) -> Comparison:
    """Read the runs and work out what is to be said. Raises UserError for what is no run, or no such baseline."""
    if not folders:
        raise UserError("name what to compare: pal-dist compare RUN... (runs' folders, or folders of runs)")
    groups, notes = group_runs(find_runs(folders))
    names = [group.name for group in groups]
    if baseline is not None and baseline not in names:
        near = nearest(baseline, names)
        hint = f"did you mean {near!r}?" if near else f"the groups are {', '.join(map(repr, names))}"
        raise UserError(f"--baseline {baseline!r} is no group: {hint}")
    chosen = groups[names.index(baseline)] if baseline is not None else groups[0]
    synthetic = [group.name for group in groups if group.runs[0].values["data_dir"] == "builtin"]
    if synthetic:
        notes.insert(0, SYNTHETIC if len(synthetic) == len(groups) else f"{', '.join(synthetic)}: {SYNTHETIC}")
    tables = []
    if any(group.counted for group in groups):
        tables = [scores_table(groups), differences_table(groups, chosen), cost_table(groups)]
    count = sum(len(group.runs) for group in groups)
    what = f"{count} run{'s' * (count > 1)} in {len(groups)} group{'s' * (len(groups) > 1)}"
    return Comparison(title or f"Comparison of {what}", groups, chosen, notes, [each for each in tables if each.rows])


def compare(
    folders: Sequence[Path], output_dir: Path, *, title: str | None = None, baseline: str | None = None
) -> list[Path]:
    """Write `compare.html` and `compare.md` into `output_dir`; returns their paths. Raises UserError."""
    comparison = build_comparison(folders, title=title, baseline=baseline)
    if output_dir.exists() and not output_dir.is_dir():
        raise UserError(f"--output_dir {output_dir}: expected a folder, found a file")
    with explain_full_disk(output_dir):
        output_dir.mkdir(parents=True, exist_ok=True)
    paths = {output_dir / "compare.html": comparison.html(), output_dir / "compare.md": comparison.markdown()}
    for path, text in paths.items():
        write_text(path, text)
    return list(paths)
