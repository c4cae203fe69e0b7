"""The closed form: quick, and exact where it can be. (On random runs it is held to the trace in tests/ranks.)"""

from __future__ import annotations

import time

import pytest

from pal_dist.memory.closed_form import PackedSize, StepOptions, optimizer_bytes, step_bytes
from tests.support.random_runs import batch_of, random_run, shape, traced


def test_it_takes_microseconds() -> None:
    run = random_run(3)
    model = shape(run.config)
    begun = time.process_time()
    for _ in range(100):
        step_bytes(model, run.options, PackedSize(4096, 32, 128, 3))
    assert (time.process_time() - begun) / 100 < 2e-3


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit", "paged_adamw_8bit"])
def test_optimizer_state_is_exact(optimizer: str) -> None:
    run = random_run(1)
    step = traced(run.config, StepOptions(optimizer=optimizer), [batch_of(2, 16)], run.device)
    model = shape(run.config)
    rounding = 2 * 512 * len(model.trained)  # a GPU's blocks are multiples of 512 bytes
    assert optimizer_bytes(model, optimizer) == pytest.approx(step.categories["optimizer state"], abs=rounding)
