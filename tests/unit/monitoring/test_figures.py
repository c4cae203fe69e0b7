"""The curves of a comparison."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pal_dist.monitoring.compare.figures import draw_curves, line_styles
from pal_dist.monitoring.compare.runs import find_runs, group_runs
from pal_dist.monitoring.compare.tables import headlines


def test_groups_look_different(runs: Path) -> None:
    (group, _), _ = group_runs(find_runs([runs]))
    assert len(set(line_styles([group] * 28))) == 28


def test_single_evaluations_stand_side_by_side(runs: Path) -> None:
    """One dev point a run: groups beside each other, with bars; where there are more, curves over steps."""
    several = find_runs([runs])
    once = [
        replace(run, dev={name: dict(list(values.items())[-1:]) for name, values in run.dev.items()}) for run in several
    ]
    for members, beside in ((several, 0), (once, 4)):  # sst, para, sts and the mean
        groups, _ = group_runs(members)
        figures = [figure for figure in draw_curves(groups, headlines(groups)) if "loss" not in figure.title]
        assert len(figures) == 4
        assert sum("groups in the legend" in figure.svg for figure in figures) == beside
