"""Do two groups of runs differ by more than their seeds make them? Welch's t-test, Holm's correction."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

LEVEL = 0.05
"""Chance of calling noise a difference, over all comparisons of a family together."""

TINY = 1e-300


def incomplete_beta(a: float, b: float, x: float, rest: float) -> float:
    """The regularised incomplete beta function I_x(a, b), a and b positive, x from 0 to 1.

    `rest` is 1 - x, given apart because near x = 1 a subtraction would lose its digits.

    Continued fraction DLMF 8.17.22, evaluated from the front by Lentz's method; it converges fast below the mean of the
    beta distribution, and above it the symmetry 1 - I_{1-x}(b, a) is used.
    """
    if x <= 0 or rest <= 0:
        return 0.0 if x <= 0 else 1.0
    if x > (a + 1) / (a + b + 2):
        return 1.0 - incomplete_beta(b, a, rest, x)
    logarithm = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front = math.exp(logarithm + a * math.log(x) + b * math.log(rest))
    fraction = c = 1.0
    d = 0.0
    for number in range(100_000):
        m = number // 2
        if number == 0:
            term = 1.0
        elif number % 2 == 0:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        else:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        d = 1 / (1 + term * d or TINY)
        c = 1 + term / c or TINY
        fraction *= c * d
        if number and abs(1 - c * d) < 1e-15:
            return front * (fraction - 1) / a
    raise ArithmeticError(f"incomplete beta function: no convergence for a={a}, b={b}, x={x}")


def two_sided_p(t: float, freedom: float) -> float:
    """Chance that a Student t variable of `freedom` degrees is at least as far from 0 as `t`."""
    whole = freedom + t * t
    return incomplete_beta(freedom / 2, 0.5, freedom / whole, t * t / whole)


def quantile(p: float, freedom: float) -> float:
    """The t whose `two_sided_p` is p, by bisection; 0 < p < 1."""
    low, high = 0.0, 1.0
    while two_sided_p(high, freedom) > p:
        low, high = high, 2 * high
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if two_sided_p(middle, freedom) > p else (low, middle)
    return (low + high) / 2


@dataclass(frozen=True)
class Difference:
    """Mean of one group of numbers less the mean of another."""

    value: float
    """NaN where either mean is."""
    low: float | None = None
    high: float | None = None
    """Ends of the 95 % interval; None, as `p`, where the seeds cannot tell."""
    p: float | None = None
    why: str = ""
    """Why the seeds cannot tell."""


def welch(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """Welch's t-test (Welch 1947), two-sided: variances may differ. Needs two numbers on each side, and spread."""
    value = statistics.fmean(ours) - statistics.fmean(theirs)
    if not math.isfinite(value):
        return Difference(math.nan, why="not a number: cannot be told")
    if min(len(ours), len(theirs)) < 2:
        return Difference(value, why="one seed: cannot be told")
    # `statistics` reckons in fractions: numbers that are all the same have variance 0, not one of rounding.
    parts = [statistics.variance(side) / len(side) for side in (ours, theirs)]
    squared = sum(parts)
    if squared == 0:
        return Difference(value, why="no spread over seeds: cannot be told")
    error = math.sqrt(squared)
    shares = [part / squared for part in parts]
    freedom = 1 / sum(share**2 / (len(side) - 1) for share, side in zip(shares, (ours, theirs), strict=True))
    reach = quantile(LEVEL, freedom) * error
    return Difference(value, value - reach, value + reach, two_sided_p(value / error, freedom))


def holm(ps: Sequence[float]) -> list[float]:
    """p-values corrected for being many (Holm 1979): comparing them with LEVEL keeps the family's error at LEVEL."""
    corrected, largest = [0.0] * len(ps), 0.0
    for rank, index in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[index]))
        corrected[index] = largest
    return corrected
