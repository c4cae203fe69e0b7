"""How predictions are judged: functions of ALL predictions and ALL labels of a split, never averaged over batches.

Each takes predictions and labels of shape (examples,) in the labels' own units. A test holds them to scikit-learn and
SciPy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def accuracy(predictions: Array, labels: Array) -> float:
    """Share of predictions that are the label."""
    return float((predictions == labels).mean())


def f1(predictions: Array, labels: Array) -> float:
    """F1 of the positive class; 0 where nothing is predicted or labelled positive."""
    hits = ((predictions == 1) & (labels == 1)).sum()
    positives = (predictions == 1).sum() + (labels == 1).sum()
    return float(2 * hits / positives) if positives else 0.0


def f1_macro(predictions: Array, labels: Array) -> float:
    """Mean of the F1 of every class that occurs among predictions or labels."""
    right, predicted, labelled = _class_counts(predictions, labels)
    return float(np.mean(2 * right / (predicted + labelled)))


def matthews(predictions: Array, labels: Array) -> float:
    """Matthews correlation of any number of classes (Gorodkin 2004); 0 where one side is constant."""
    right, predicted, labelled = (counts.astype(float) for counts in _class_counts(predictions, labels))
    total = labelled.sum()
    spread = (total**2 - (predicted**2).sum()) * (total**2 - (labelled**2).sum())
    return float((right.sum() * total - predicted @ labelled) / np.sqrt(spread)) if spread else 0.0


def _class_counts(predictions: Array, labels: Array) -> tuple[Array, Array, Array]:
    """Of every class that occurs: how often it is both, predicted, and the label. As much memory as the examples take,
    not examples times classes."""
    classes, places = np.unique(np.concatenate([predictions, labels]), return_inverse=True)
    predicted, labelled = places[: len(predictions)], places[len(predictions) :]
    sides = (predicted[predicted == labelled], predicted, labelled)
    right, often_predicted, often_labelled = (np.bincount(side, minlength=len(classes)) for side in sides)
    return right, often_predicted, often_labelled


def pearson(predictions: Array, labels: Array) -> float:
    """Pearson correlation; NaN, said as NaN, where one side is constant."""
    a, b = predictions - predictions.mean(), labels - labels.mean()
    scale = np.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / scale) if scale else float("nan")


def why_no_correlation(labels: Array) -> str:
    """In words, where `pearson` or `spearman` was NaN."""
    if len(np.unique(labels)) < 2:
        return f"all {len(labels):,} labels are {labels[0]:g}; a correlation needs labels that differ"
    return "all predictions are the same; a correlation needs predictions that differ"


def spearman(predictions: Array, labels: Array) -> float:
    """Pearson correlation of the ranks, ties sharing their mean rank."""
    return pearson(_ranks(predictions), _ranks(labels))


def _ranks(values: Array) -> Array:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse])
