"""The curves of a comparison."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

from pal_dist.monitoring import run_files
from pal_dist.monitoring.compare.figures import curve, draw_curves, line_styles
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


def test_a_score_that_is_no_number_is_a_gap(runs: Path) -> None:
    """Of two seeds, one of which has none."""
    metrics = runs / "round_robin_0" / run_files.METRICS
    metrics.write_text(re.sub(r'"(pearson|sts)": [\d.]+', r'"\1": null', metrics.read_text(), count=2))
    _, group = group_runs(find_runs([runs]))[0]
    points = curve(group.drawn, lambda run: run.dev["sts"])
    assert [math.isnan(mean) for _, mean, _ in points].count(True) >= 1
    assert all(figure.svg.startswith("<svg") for figure in draw_curves([group], {}))
