"""A picture of memory over a step: each category a band, the highest point marked."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pal_dist.core.units import MEBIBYTE
from pal_dist.memory.tracker import CATEGORIES

COLOURS = ("#4c72b0", "#dd8452", "#55a868", "#c44e52", "#8172b3", "#b0b0b0")
WIDTH, HEIGHT = 1000, 460
LEFT, RIGHT, TOP, BOTTOM = 80, 190, 40, 40


def plot_memory(timeline: Sequence[tuple[str, dict[str, int]]], title: str) -> NDArray[np.uint8]:
    """(height, width, 3) from (phase, bytes of each category) after each event, in order."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(picture)
    bands = np.cumsum([[entry[name] for name in CATEGORIES] for _, entry in timeline], axis=1)  # (events, categories)
    top = float(bands[:, -1].max()) * 1.08
    plot_width, plot_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    # One column a pixel, each showing the highest moment of its events: no peak is lost between pixels.
    edges = np.linspace(0, len(timeline), plot_width + 1).astype(int)
    for column, (first, last) in enumerate(pairwise(edges)):
        part = bands[first : max(last, first + 1)]
        levels = [0, *part[part[:, -1].argmax()]]
        for colour, low, high in zip(COLOURS, levels, levels[1:], strict=False):
            if high > low:
                ends = (TOP + plot_height * (1 - value / top) for value in (high, low))
                draw.line([(LEFT + column, y) for y in ends], fill=colour)
    _axes(draw, top, title, plot_width, plot_height)
    _phases(draw, [phase for phase, _ in timeline], plot_width)
    peak = int(bands[:, -1].argmax())
    x, y = LEFT + plot_width * peak / len(timeline), TOP + plot_height * (1 - bands[peak, -1] / top)
    draw.ellipse((x - 4, y - 4, x + 4, y + 4), outline="black", fill="white")
    draw.text((min(x + 8, WIDTH - RIGHT - 90), y - 12), f"{bands[peak, -1] / MEBIBYTE:,.1f} MiB", fill="black")
    for row, (name, colour) in enumerate(zip(CATEGORIES, COLOURS, strict=True)):
        y = TOP + 22 * row
        draw.rectangle((WIDTH - RIGHT + 15, y, WIDTH - RIGHT + 29, y + 12), fill=colour)
        draw.text((WIDTH - RIGHT + 36, y), f"{name} {timeline[peak][1][name] / MEBIBYTE:,.0f}", fill="black")
    return np.asarray(picture)


def _axes(draw, top: float, title: str, plot_width: int, plot_height: int) -> None:  # type: ignore[no-untyped-def]
    draw.text((LEFT, 12), title, fill="black")
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = TOP + plot_height * (1 - share)
        draw.line((LEFT - 4, y, LEFT + plot_width, y), fill="#dddddd" if share else "black")
        draw.text((8, y - 6), f"{share * top / MEBIBYTE:,.0f} MiB", fill="black")


def _phases(draw, phases: list[str], plot_width: int) -> None:  # type: ignore[no-untyped-def]
    starts = [place for place in range(len(phases)) if place == 0 or phases[place] != phases[place - 1]]
    for start in starts:
        x = LEFT + plot_width * start / len(phases)
        draw.line((x, TOP, x, HEIGHT - BOTTOM), fill="#888888")
        draw.text((x + 3, HEIGHT - BOTTOM + 6), phases[start].replace("optimizer step", "update"), fill="black")
