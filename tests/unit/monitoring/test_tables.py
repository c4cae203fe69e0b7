"""Words of a comparison."""

from __future__ import annotations

import pytest

from pal_dist.monitoring.compare.significance import Difference
from pal_dist.monitoring.compare.tables import (
    EXCEEDS,
    SUGGESTIVE,
    WITHIN,
    verdict_of,
)


@pytest.mark.parametrize(
    ("p", "corrected", "verdict"), [(0.001, 0.04, EXCEEDS), (0.001, 0.06, SUGGESTIVE), (0.06, 0.06, WITHIN)]
)
def test_what_only_the_correction_takes_back(p: float, corrected: float, verdict: str) -> None:
    assert verdict_of(Difference(0.1, 0.0, 0.2, p), corrected) == verdict
