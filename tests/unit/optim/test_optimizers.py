"""The learning rate as a function of the step."""

from __future__ import annotations

import pytest

from pal_dist.optim.optimizers import learning_rate_factor


def test_schedules() -> None:
    linear = [learning_rate_factor(step, 10, 0.2) for step in range(10)]
    constant = [learning_rate_factor(step, 10, 0.2, "constant") for step in range(10)]
    assert linear[:2] == constant[:2] == [0.5, 1.0]
    assert constant[2:] == [1.0] * 8
    assert linear[2:] == pytest.approx([1 - step / 8 for step in range(8)])
    assert learning_rate_factor(0, 10, 0.0, "constant") == 1.0
