"""The picture of memory over a step."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pal_dist.memory.plot import COLUMNS, _highest_moments, plot_memory
from pal_dist.memory.tracker import CATEGORIES

TIMELINE = [
    ("forward" if number < 2000 else "backward", dict.fromkeys(CATEGORIES, number if number != 2500 else 10**6))
    for number in range(4000)
]


def test_no_peak_is_lost_between_columns() -> None:
    events, bands = _highest_moments(TIMELINE)
    assert len(events) == COLUMNS
    assert bands.max() == 10**6
    assert events[bands.sum(axis=1).argmax()] == 2500


def test_a_png_and_its_pixels(tmp_path: Path) -> None:
    pixels = plot_memory(TIMELINE, "a step", tmp_path / "memory.png")
    assert (tmp_path / "memory.png").read_bytes().startswith(b"\x89PNG")
    assert pixels.shape == (460, 1000, 3)
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > len(CATEGORIES)
