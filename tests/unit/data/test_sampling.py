"""Sampling: pure functions of (seed, step), right in the mean and at the edges."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from pal_dist.config.resolve import settings
from pal_dist.data.batching import Schedule
from pal_dist.data.sampling import Sampling
from tests.support.lengths import lengths_like_text

SIZES = (8544, 16000, 5500)


@pytest.mark.parametrize("kind", get_args(settings()["sampling"].kind))
@pytest.mark.parametrize("step_tasks", ["all", "one"])
def test_pure_and_complete(kind: str, step_tasks: str) -> None:
    sampling = Sampling(kind, SIZES, batch_size=32, step_tasks=step_tasks, epochs=4, seed=3)
    backwards = [sampling.counts(step) for step in reversed(range(40))][::-1]
    for step, counts in enumerate(backwards):
        np.testing.assert_array_equal(counts, Sampling(kind, SIZES, 32, step_tasks, 4, 3).counts(step))
        assert counts.sum() == sampling.examples_per_step
        assert (counts > 0).sum() == (3 if step_tasks == "all" else 1)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("round_robin", [1, 1, 1]), ("random", [1, 1, 1]), ("proportional", SIZES), ("sqrt", np.sqrt(SIZES))],
)
@pytest.mark.parametrize("step_tasks", ["all", "one"])
def test_shares(kind: str, expected: list[float], step_tasks: str) -> None:
    sampling = Sampling(kind, SIZES, batch_size=32, step_tasks=step_tasks)
    examples = sum(sampling.counts(step) for step in range(3000))
    np.testing.assert_allclose(examples / examples.sum(), np.asarray(expected) / np.sum(expected), atol=0.02)


def test_annealed_exponents() -> None:
    """alpha = 1 - 0.8 (e - 1) / (E - 1) of the PAL paper, e from 1."""
    sampling = Sampling("annealed", SIZES, batch_size=32, epochs=5)
    per_epoch = sampling.steps_per_epoch
    assert [sampling.alpha(epoch * per_epoch) for epoch in range(5)] == pytest.approx([1, 0.8, 0.6, 0.4, 0.2])
    assert sampling.alpha(99 * per_epoch) == pytest.approx(0.2)
    assert Sampling("annealed", SIZES, batch_size=32, epochs=1).alpha(0) == 1


def test_round_robin_one_task_a_step_turns() -> None:
    sampling = Sampling("round_robin", SIZES, batch_size=4, step_tasks="one")
    assert [int(sampling.counts(step).argmax()) for step in range(5)] == [0, 1, 2, 0, 1]


def test_a_tiny_task_is_served_in_every_complete_step() -> None:
    sampling = Sampling("proportional", (1_000_000, 10), batch_size=4)
    assert sampling.counts(0).tolist() == [7, 1]
    assert Sampling("proportional", (1_000_000, 10), batch_size=1).counts(0).tolist() == [1, 1]


@pytest.mark.parametrize("kind", get_args(settings()["sampling"].kind))
@pytest.mark.parametrize("step_tasks", ["all", "one"])
@pytest.mark.parametrize("sizes", [(90, 700, 50), (9, 5, 7), (300,), (3, 2000)])
def test_no_step_serves_more_of_a_task_than_is_promised(kind: str, step_tasks: str, sizes: tuple[int, ...]) -> None:
    """For the planner, which makes room for that many. Random sampling may stay below; the others reach it."""
    epochs = 5
    sampling = Sampling(kind, sizes, batch_size=6, step_tasks=step_tasks, epochs=epochs, seed=2)
    schedule = Schedule(sampling, [lengths_like_text(size) for size in sizes])
    steps = max(300, epochs * sampling.steps_per_epoch)
    most = [0] * len(sizes)
    for step_rows in schedule.steps(0, steps):
        for task, rows in step_rows:
            most[task] = max(most[task], len(rows))
    if kind == "random" and step_tasks == "all":
        for seen, promised, size in zip(most, sampling.most_rows, sizes, strict=True):
            assert seen <= promised <= min(size, sampling.examples_per_step)
    else:
        # Each step of one task serves its whole batch, so a task that is hardly ever drawn reaches it too.
        assert tuple(most) == sampling.most_rows


def test_at_random_one_task_may_get_all_that_is_to_spare() -> None:
    assert Sampling("random", (1000, 1000, 1000), batch_size=8).most_rows == (22, 22, 22)


def test_an_epoch_is_said_in_one_sentence() -> None:
    text = Sampling("proportional", SIZES, batch_size=32).describe_epoch(("sst", "para", "sts"))
    assert "313 optimizer steps" in text
    assert "(30,044)" in text
    assert "sst 0.99, para 1.00, sts 1.02" in text  # 27 + 51 + 18 examples a step


def test_epochs_of_a_given_length() -> None:
    """The annealed exponent of the PAL authors' program: 1 in its first epoch, 0.2 in its last, by its own epochs."""
    sampling = Sampling("annealed", (900, 100), 10, "one", epochs=5, epoch_steps=7)
    assert [sampling.alpha(step) for step in (0, 6, 7, 27, 28, 34, 99)] == pytest.approx(
        [1, 1, 0.8, 0.4, 0.2, 0.2, 0.2]
    )
    assert "one epoch = 7 optimizer steps as given (70 examples)" in sampling.describe_epoch(("a", "b"))
    assert replace(sampling, epoch_steps=None).steps_per_epoch == 100
