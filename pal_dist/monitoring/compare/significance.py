"""Do two groups of runs differ by more than their seeds make them? Welch's t-test, Holm's correction."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from pal_dist.core.extras import require

LEVEL = 0.05
"""Chance of calling noise a difference, over all comparisons of a family together."""


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
    special = require("scipy.special", extra="compare", what="compare")  # scipy.stats.t gives the same, slower
    reach = -float(special.stdtrit(freedom, LEVEL / 2)) * error
    return Difference(value, value - reach, value + reach, 2 * float(special.stdtr(freedom, -abs(value) / error)))


def holm(ps: Sequence[float]) -> list[float]:
    """p-values corrected for being many (Holm 1979): comparing them with LEVEL keeps the family's error at LEVEL."""
    corrected, largest = [0.0] * len(ps), 0.0
    for rank, index in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[index]))
        corrected[index] = largest
    return corrected
