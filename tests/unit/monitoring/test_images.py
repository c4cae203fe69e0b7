"""Pictures for TensorBoard."""

from __future__ import annotations

import numpy as np

from pal_dist.monitoring.images import confusion_image, cosine_image


def test_pictures_show_what_they_are_of() -> None:
    same, other = confusion_image(np.array([[9, 1], [0, 4]])), confusion_image(np.array([[1, 9], [0, 4]]))
    assert same.dtype == np.uint8
    assert same.ndim == 3
    assert same.shape[2] == 3
    assert (same != other).any()
    against, along = ([[1.0, value], [value, 1.0]] for value in (-1.0, 1.0))
    red, blue = (cosine_image(["sst", "sts"], cosines).reshape(-1, 3).mean(axis=0) for cosines in (against, along))
    assert red[0] > blue[0], "against each other: red"
    assert blue[2] > red[2], "along: blue"
