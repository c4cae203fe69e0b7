"""A picture of memory over a step: each category a band, the highest point marked."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pal_dist.core.extras import require
from pal_dist.core.units import GIBIBYTE, gib
from pal_dist.memory.tracker import CATEGORIES

COLOURS = ("#4c72b0", "#dd8452", "#55a868", "#c44e52", "#8172b3", "#b0b0b0")

COLUMNS = 1000
"""Points that are drawn; each shows the highest moment of its events, so that no peak is lost between them."""


def plot_memory(timeline: Sequence[tuple[str, dict[str, int]]], title: str, file: Path) -> NDArray[np.uint8]:
    """Draw (phase, bytes of each category) after each event, in order, into a PNG file; returns its pixels, (h, w, 3).

    Raises UserError where matplotlib is not installed.
    """
    figures = require("matplotlib.figure", extra="compare", what="a picture of memory")
    canvases = require("matplotlib.backends.backend_agg", extra="compare", what="a picture of memory")
    figure = figures.Figure(figsize=(10, 4.6), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    events, bands = _highest_moments(timeline)
    axes.stackplot(events, bands.T / GIBIBYTE, colors=COLOURS, labels=CATEGORIES, step="post")
    totals = bands.sum(axis=1)
    peak = int(totals.argmax())
    axes.plot(events[peak], totals[peak] / GIBIBYTE, "o", color="black", markerfacecolor="white")
    axes.annotate(gib(totals[peak]), (events[peak], totals[peak] / GIBIBYTE), xytext=(6, 4), textcoords="offset points")
    phases = [phase for phase, _ in timeline]
    starts = [0, *(number for number, (one, other) in enumerate(pairwise(phases), 1) if one != other)]
    for start in starts:
        axes.axvline(start, color="#888888", linewidth=0.6)
    axes.set_xticks(starts, [phases[start].replace("optimizer step", "update") for start in starts], ha="left")
    axes.set_ylabel("GiB")
    axes.set_ylim(0, 1.12 * totals[peak] / GIBIBYTE)
    axes.set_xlim(0, len(timeline))
    axes.set_title(title, loc="left", fontsize=10)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, reverse=True)
    canvas = canvases.FigureCanvasAgg(figure)
    figure.savefig(file)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _highest_moments(timeline: Sequence[tuple[str, dict[str, int]]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(numbers of events, bytes of each category then): the highest event of each column, (columns, categories)."""
    bands = np.array([[entry[name] for name in CATEGORIES] for _, entry in timeline], dtype=np.int64)
    totals = bands.sum(axis=1)
    edges = np.linspace(0, len(timeline), min(COLUMNS, len(timeline)) + 1).astype(int)
    events = np.array([first + int(totals[first:last].argmax()) for first, last in pairwise(edges)])
    return events, bands[events]
