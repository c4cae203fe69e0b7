"""Curves as SVG that stands inside an HTML page: no script, no file beside it, the same bytes for the same numbers."""

from __future__ import annotations

import io
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from typing import TYPE_CHECKING

from pal_dist.core.extras import require
from pal_dist.monitoring.compare.runs import MEAN, Curve, Group, Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
"""Okabe and Ito's, told apart by colour-blind readers; without their yellow, which is not seen on white."""

DASHES = ((), (6, 2), (2, 2), (8, 2, 2, 2))
"""Lengths of line and gap in points: groups differ in these too, for print in grey and for more groups than colours."""


@dataclass(frozen=True)
class LineStyle:
    colour: str
    dashes: tuple[int, ...]


@dataclass(frozen=True)
class Figure:
    title: str
    svg: str


def line_styles(groups: Sequence[Group]) -> list[LineStyle]:
    """Each group's style, in the groups' order; the first 28 are all different."""
    rounds = (divmod(n, len(COLOURS)) for n in range(len(groups)))
    return [LineStyle(COLOURS[colour], DASHES[(colour + full) % len(DASHES)]) for full, colour in rounds]


def curve(runs: Sequence[Run], of: Callable[[Run], Curve]) -> list[tuple[int, float, float]]:
    """(step, mean, sample standard deviation) at the steps that all the runs have; 0 for one run."""
    curves = [of(run) for run in runs]
    curves = [each for each in curves if each]
    if not curves:
        return []
    steps = sorted(set(curves[0]).intersection(*curves[1:]))
    return [
        (step, statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0)
        for step in steps
        for values in [[each[step] for each in curves]]
    ]


def draw_curves(groups: Sequence[Group], metrics: Mapping[str, str]) -> list[Figure]:
    """A loss curve and a dev curve of each task, and the dev curve of the mean."""
    drawn = [run for group in groups for run in group.drawn]
    tasks = dict.fromkeys(task for run in drawn for task in [*run.losses, *run.dev] if task != MEAN)
    figures = []
    for task in tasks:
        if any(task in run.losses for run in drawn):
            figures.append(_figure(f"{task}: training loss", "loss", groups, partial(_loss, task)))
        if any(task in run.dev for run in drawn):
            label = metrics.get(task, "headline metric")
            figures.append(_figure(f"{task}: dev {label}", label, groups, partial(_dev, task)))
    if any(MEAN in run.dev for run in drawn):
        figures.append(_figure("Mean of dev scores", "dev mean", groups, partial(_dev, MEAN)))
    return figures


def _loss(task: str, run: Run) -> Curve:
    return run.losses.get(task, {})


def _dev(name: str, run: Run) -> Curve:
    return run.dev.get(name, {})


def _figure(title: str, label: str, groups: Sequence[Group], of: Callable[[Run], Curve]) -> Figure:
    matplotlib = require("matplotlib", extra="compare", what="compare")
    figures = require("matplotlib.figure", extra="compare", what="compare")
    with matplotlib.rc_context(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": title,
            "font.family": "sans-serif",
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    ):
        canvas = figures.Figure(figsize=(4.6, 2.9), layout="constrained")
        axes = canvas.add_subplot()
        lines = [curve(group.drawn, of) for group in groups]
        alone = all(len(points) < 2 for points in lines)  # then points stand side by side, not on top of each other
        for number, (points, style) in enumerate(zip(lines, line_styles(groups), strict=True)):
            _line(axes, [(number, mean, spread) for _, mean, spread in points] if alone else points, style)
        axes.set_xlabel("one evaluation a run; groups in the legend's order" if alone else "optimizer step")
        axes.set_ylabel(label)
        axes.set_title(title, fontsize=10, loc="left")
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.locator_params(axis="x", integer=True)
        if alone:
            axes.set_xticks([])
        file = io.StringIO()
        canvas.savefig(file, format="svg", metadata={"Date": None}, transparent=True)
    return Figure(title, _inline(file.getvalue(), title, ", ".join(group.name for group in groups)))


def _line(axes: Axes, points: Sequence[tuple[int, float, float]], style: LineStyle) -> None:
    if not points:
        return
    steps, means, spreads = (list(column) for column in zip(*points, strict=True))
    if len(steps) < 2:  # no line and no band: a point and its bar
        axes.errorbar(steps, means, spreads if any(spreads) else None, color=style.colour, marker="o", linewidth=1.6)
        return
    (line,) = axes.plot(steps, means, color=style.colour, linewidth=1.6)
    if style.dashes:
        line.set_dashes(style.dashes)
    if any(spreads):
        low, high = ([mean + sign * spread for _, mean, spread in points] for sign in (-1, 1))
        axes.fill_between(steps, low, high, color=style.colour, alpha=0.15, linewidth=0)


def _inline(svg: str, title: str, names: str) -> str:
    """Without what belongs to a file of its own; ids made unique in a page with several figures; titled."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)
    own = "figure-" + re.sub(r"[^a-z0-9]+", "-", title.lower()) + "-"
    svg = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{own}", svg)
    # A figure's title and description come first in it, and the size is the page's affair.
    head, rest = svg.split(">", 1)
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    description = (
        f"<title>{escape(title)}</title><desc>{escape(f'Over optimizer steps, one line for each of: {names}')}</desc>"
    )
    return f'{head} role="img">{description}{rest}'
