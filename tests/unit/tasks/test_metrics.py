"""Metrics against scikit-learn and SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from pal_dist.tasks import metrics

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("classes", [2, 5])
def test_class_metrics(classes: int) -> None:
    labels = RANDOM.integers(0, classes, 300).astype(float)
    predictions = np.where(RANDOM.random(300) < 0.6, labels, RANDOM.integers(0, classes, 300))
    assert metrics.accuracy(predictions, labels) == pytest.approx(sklearn.metrics.accuracy_score(labels, predictions))
    macro = sklearn.metrics.f1_score(labels, predictions, average="macro")
    assert metrics.f1_macro(predictions, labels) == pytest.approx(macro)
    mcc = sklearn.metrics.matthews_corrcoef(labels, predictions)
    assert metrics.matthews(predictions, labels) == pytest.approx(mcc)
    if classes == 2:
        assert metrics.f1(predictions, labels) == pytest.approx(sklearn.metrics.f1_score(labels, predictions))


def test_score_metrics() -> None:
    labels = np.round(RANDOM.random(200) * 5, 1)  # rounded, so that ranks tie
    predictions = labels + RANDOM.normal(size=200)
    assert metrics.pearson(predictions, labels) == pytest.approx(scipy.stats.pearsonr(predictions, labels).statistic)
    rank = scipy.stats.spearmanr(predictions, labels).statistic
    assert metrics.spearman(predictions, labels) == pytest.approx(rank)


def test_constant_predictions_are_said_as_they_are() -> None:
    labels = np.array([0.0, 1.0, 2.0])
    assert np.isnan(metrics.pearson(np.ones(3), labels))
    assert metrics.matthews(np.ones(3), labels) == 0
    assert metrics.f1(np.zeros(3), np.zeros(3)) == 0
