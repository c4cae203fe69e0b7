"""Pictures for TensorBoard, drawn with matplotlib, without a screen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pal_dist.core.extras import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Image = NDArray[np.uint8]
"""(height, width, 3)."""

DARK = 0.6
"""Shade from which text on a cell is white."""


def to_image(figure: Figure) -> Image:
    """The figure's pixels."""
    canvas = require("matplotlib.backends.backend_agg", extra="compare", what="a picture").FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def confusion_image(counts: NDArray[np.int64]) -> Image:
    """Counts [label, prediction]: the darker, the larger the share of its label."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    names = [str(number) for number in range(len(counts))]
    return _grid_image(names, counts.astype(str).tolist(), shares, x_label="predicted", y_label="label")


def cosine_image(tasks: list[str], cosines: list[list[float]]) -> Image:
    """Cosines between tasks' gradients: blue where they agree, red where they point against each other."""
    return _grid_image(tasks, [[f"{value:.2f}" for value in row] for row in cosines], np.asarray(cosines))


def _grid_image(
    names: list[str], texts: list[list[str]], shades: NDArray[Any], *, x_label: str = "", y_label: str = ""
) -> Image:
    """A square of cells with texts in them; shades from -1 (red) over 0 (white) to 1 (blue)."""
    size = len(names)
    figures = require("matplotlib.figure", extra="compare", what="a picture")
    figure: Figure = figures.Figure(figsize=(1.4 + 0.7 * size, 1.2 + 0.7 * size), dpi=80, layout="constrained")
    axes = figure.add_subplot()
    shades = np.nan_to_num(shades)
    axes.imshow(shades, cmap="bwr_r", vmin=-1, vmax=1)
    axes.set_xticks(range(size), names)
    axes.set_yticks(range(size), names)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    for row in range(size):
        for column in range(size):
            colour = "white" if abs(shades[row, column]) > DARK else "black"
            axes.text(column, row, texts[row][column], ha="center", va="center", color=colour)
    return to_image(figure)
