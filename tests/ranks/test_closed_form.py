"""Law 7: the closed form is held to the trace, the trace to the machine."""

from __future__ import annotations

import os
import statistics

import pytest

from pal_dist.memory.search import MARGIN
from tests.support.memory import closed_form_error
from tests.support.ranks import in_parallel

RUNS = int(os.environ.get("PAL_DIST_RUNS", "20"))
"""A trace takes seconds: for more of them, by hand, PAL_DIST_RUNS=100."""


@pytest.mark.long
def test_within_five_per_cent_of_the_trace() -> None:
    """On random models, options and batches; and never below the trace by more than the plan's margin."""
    errors = in_parallel(closed_form_error, range(RUNS))
    assert min(errors) > -MARGIN, errors.index(min(errors))
    assert max(map(abs, errors)) < 0.05, [seed for seed, error in enumerate(errors) if abs(error) >= 0.05]
    assert statistics.mean(map(abs, errors)) < 0.02
