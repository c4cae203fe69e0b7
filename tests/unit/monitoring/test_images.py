"""Pictures for TensorBoard."""

from __future__ import annotations

import numpy as np

from pal_dist.monitoring.images import confusion_image, cosine_image
from pal_dist.tasks.confusion import Confusion


def test_pictures_show_what_they_are_of() -> None:
    counts = ([[9, 1], [0, 4]], [[1, 9], [0, 4]])
    same, other = (confusion_image(Confusion(("0", "1"), np.array(rows))) for rows in counts)
    assert same.dtype == np.uint8
    assert same.ndim == 3
    assert same.shape[2] == 3
    assert (same != other).any()
    against, along = ([[1.0, value], [value, 1.0]] for value in (-1.0, 1.0))
    red, blue = (cosine_image(["sst", "sts"], cosines).reshape(-1, 3).mean(axis=0) for cosines in (against, along))
    assert red[0] > blue[0], "against each other: red"
    assert blue[2] > red[2], "along: blue"


def test_a_grid_of_many_tasks_is_of_bounded_size() -> None:
    tasks = [f"task{number}" for number in range(150)]
    image = cosine_image(tasks, np.eye(150).tolist())
    assert max(image.shape) < 2500
