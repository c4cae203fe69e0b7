"""Welch's test is SciPy's, Holm's correction is closed testing, and noise is called noise."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest

from pal_dist.monitoring.compare.significance import holm, welch


@pytest.mark.parametrize("sizes", [(2, 2), (2, 5), (3, 3), (5, 40), (300, 300)])
@pytest.mark.parametrize("spreads", [(1.0, 1.0), (1e-4, 3.0), (0.01, 0.012)])
def test_welch_is_scipys(sizes: tuple[int, int], spreads: tuple[float, float]) -> None:
    from scipy.stats import ttest_ind

    random = np.random.default_rng(0)
    for shift in (0.0, 0.5, 30.0):
        ours, theirs = (random.normal(0.7, spread, size) for spread, size in zip(spreads, sizes, strict=True))
        ours = ours + shift * max(spreads)
        found, reference = welch(ours.tolist(), theirs.tolist()), ttest_ind(ours, theirs, equal_var=False)
        interval = reference.confidence_interval(0.95)
        assert found.p == pytest.approx(reference.pvalue, rel=1e-9, abs=1e-300)
        assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-9, abs=1e-12)


def test_what_seeds_cannot_tell() -> None:
    assert welch([0.7], [0.5, 0.6]).why == "one seed: cannot be told"
    assert welch([0.7], [0.5, 0.6]).value == pytest.approx(0.15)
    same = welch([0.1 + 0.2] * 3, [0.4] * 3)  # their mean in floating point is off by a rounding
    assert (same.p, same.why) == (None, "no spread over seeds: cannot be told")
    assert math.isnan(welch([math.nan, 0.1], [0.5, 0.6]).value)
    one, other = welch([0.1, 0.2, 0.4], [0.7, 0.9]), welch([0.7, 0.9], [0.1, 0.2, 0.4])
    assert one.low is not None
    assert (one.value, one.p, one.low) == (-other.value, other.p, -other.high)  # type: ignore[operator]


def test_holm_is_closed_testing_of_bonferroni() -> None:
    """The definition that Holm's steps are a shortcut of: the largest Bonferroni p of all sets with the hypothesis."""
    random = np.random.default_rng(1)
    for size in range(1, 7):
        ps = random.uniform(0, 0.4, size).tolist()
        sets = [chosen for k in range(1, size + 1) for chosen in combinations(range(size), k)]
        closed = [
            max(min(1.0, len(chosen) * min(ps[i] for i in chosen)) for chosen in sets if index in chosen)
            for index in range(size)
        ]
        assert holm(ps) == pytest.approx(closed)
    assert holm([]) == []


def test_noise_is_called_noise() -> None:
    """Groups drawn alike are told apart in no more than the level's share of comparisons (4 errors of counting)."""
    random = np.random.default_rng(2)
    ps = [welch(*random.normal(0.8, 0.01, (2, 4)).tolist()).p for _ in range(2000)]
    share = np.mean([p < 0.05 for p in ps if p is not None])
    assert 0.02 < share < 0.05 + 4 * math.sqrt(0.05 * 0.95 / 2000)
