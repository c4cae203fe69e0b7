"""Law 7: the closed form is held to the trace, the trace to the machine."""

from __future__ import annotations

import os
import statistics
import time

import pytest

from pal_dist.memory.closed_form import StepOptions, optimizer_bytes, step_bytes
from pal_dist.memory.search import MARGIN
from tests.support.random_runs import batch_of, random_run, shape, traced
from tests.support.ranks import in_parallel

RUNS = int(os.environ.get("PAL_DIST_RUNS", "20"))
"""A trace takes seconds: for more of them, by hand, PAL_DIST_RUNS=100."""


def error(seed: int) -> float:
    """The closed form over the trace, less one, on a random run."""
    run = random_run(seed)
    found = traced(run.config, run.options, [batch_of(run.rows, run.length)] * run.micro_batches, run.device)
    form = step_bytes(shape(run.config), run.options, run.rows, run.length, accumulates=run.micro_batches > 1)
    return form.peak / found.peak - 1


@pytest.mark.long
def test_within_five_per_cent_of_the_trace() -> None:
    """On random models, options and batches; and never below the trace by more than the plan's margin."""
    errors = in_parallel(error, range(RUNS))
    assert min(errors) > -MARGIN, errors.index(min(errors))
    assert max(map(abs, errors)) < 0.05, [seed for seed, found in enumerate(errors) if abs(found) >= 0.05]
    assert statistics.mean(map(abs, errors)) < 0.02


def test_it_takes_microseconds() -> None:
    run = random_run(3)
    known = shape(run.config)
    begun = time.process_time()
    for _ in range(100):
        step_bytes(known, run.options, 32, 128)
    assert (time.process_time() - begun) / 100 < 2e-3


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit", "paged_adamw_8bit"])
def test_optimizer_state_is_exact(optimizer: str) -> None:
    run = random_run(1)
    found = traced(run.config, StepOptions(optimizer=optimizer), [batch_of(2, 16)], run.device)
    known = shape(run.config)
    rounding = 2 * 512 * len(known.trained)  # a GPU's blocks are multiples of 512 bytes
    assert optimizer_bytes(known, optimizer) == pytest.approx(found.categories["optimizer state"], abs=rounding)
