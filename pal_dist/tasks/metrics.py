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
    return float(np.mean([f1(predictions == label, labels == label) for label in np.union1d(predictions, labels)]))


def matthews(predictions: Array, labels: Array) -> float:
    """Matthews correlation of any number of classes (Gorodkin 2004); 0 where one side is constant."""
    classes = np.union1d(predictions, labels)
    one_hot = [(values[:, None] == classes).astype(float) for values in (predictions, labels)]
    a, b = (matrix - matrix.mean(axis=0) for matrix in one_hot)
    scale = np.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / scale) if scale else 0.0


def pearson(predictions: Array, labels: Array) -> float:
    """Pearson correlation; NaN, said as NaN, where one side is constant."""
    a, b = predictions - predictions.mean(), labels - labels.mean()
    scale = np.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / scale) if scale else float("nan")


def spearman(predictions: Array, labels: Array) -> float:
    """Pearson correlation of the ranks, ties sharing their mean rank."""
    return pearson(_ranks(predictions), _ranks(labels))


def _ranks(values: Array) -> Array:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse])
