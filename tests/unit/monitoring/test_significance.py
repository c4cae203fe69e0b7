"""Welch's test is the textbook's and SciPy's, Holm's correction is closed testing, and noise is called noise."""

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
        difference, reference = welch(ours.tolist(), theirs.tolist()), ttest_ind(ours, theirs, equal_var=False)
        interval = reference.confidence_interval(0.95)
        assert difference.p == pytest.approx(reference.pvalue, rel=1e-9, abs=1e-300)
        assert (difference.low, difference.high) == pytest.approx((interval.low, interval.high), rel=1e-9, abs=1e-12)


def chance_beyond(t: float, freedom: float) -> float:
    """Two-sided tail of Student's t: its density, integrated by Gauss and Legendre's rule."""
    constant = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)
    nodes, weights = np.polynomial.legendre.leggauss(200)
    points = (nodes + 1) * t / 2
    return 1 - 2 * float(weights @ (constant * (1 + points**2 / freedom) ** (-(freedom + 1) / 2))) * t / 2


@pytest.mark.parametrize(("shift", "spread", "size"), [(0.0, 1.0, 3), (0.4, 3.0, 5), (1.0, 0.2, 30)])
def test_welch_is_the_textbooks(shift: float, spread: float, size: int) -> None:
    """Welch and Satterthwaite's formulas as they are printed; each end of the interval is a difference of p = 0.05."""
    random = np.random.default_rng(3)
    ours, theirs = random.normal(shift, spread, size), random.normal(0.0, 1.0, 4)
    first, second = ours.var(ddof=1) / size, theirs.var(ddof=1) / 4
    t = abs(ours.mean() - theirs.mean()) / math.sqrt(first + second)
    freedom = (first + second) ** 2 / (first**2 / (size - 1) + second**2 / 3)
    difference = welch(ours.tolist(), theirs.tolist())
    assert difference.p == pytest.approx(chance_beyond(t, freedom), abs=1e-11)
    for end in (difference.low, difference.high):
        assert end is not None
        assert welch((ours - end).tolist(), theirs.tolist()).p == pytest.approx(0.05, abs=1e-11)


def test_welch_on_students_sleep_data() -> None:
    """The example of R's `t.test(extra ~ group, data = sleep)`, with what R prints."""
    first = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    second = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    difference = welch(first, second)
    assert difference.p == pytest.approx(0.07939, abs=5e-6)
    assert (difference.low, difference.high) == pytest.approx((-3.3654832, 0.2054832), abs=5e-8)


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
