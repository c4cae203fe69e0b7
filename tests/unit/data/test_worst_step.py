"""The largest micro-batches of a step: the longest rows of all tasks, as many as budget and step hold."""

from __future__ import annotations

import numpy as np

from pal_dist.data.sampling import Sampling
from pal_dist.data.worst_step import most_tokens, rows_per_rank, tokens_of, worst_micro_batches

LENGTHS = [np.array(lengths, dtype=np.int32) for lengths in ([9, 30, 12, 30], [50, 7, 21], [5, 6, 7, 8, 9])]


def sizes(budget: int, rows: int, *, one_task: bool = False) -> list[dict[int, list[int]]]:
    """Lengths by task of each micro-batch."""
    worst = worst_micro_batches(LENGTHS, budget=budget, rows=[rows] * 3, one_task=one_task)
    return [{task: LENGTHS[task][own].tolist() for task, own in micro.parts} for micro in worst]


def test_a_step_that_fits_is_run_once() -> None:
    assert sizes(budget=4096, rows=2) == [{0: [30, 30], 1: [50, 21], 2: [9, 8]}]


def test_a_step_that_is_cut_meets_gradients() -> None:
    """One row of each task first, then the longest that the budget holds; twice, for gradients of the first."""
    assert sizes(budget=120, rows=2) == [{0: [30, 30], 1: [50], 2: [9]}] * 2


def test_tasks_without_room_are_run_too() -> None:
    *others, first, second = sizes(budget=55, rows=2)
    assert first == second == {1: [50]}
    assert others == [{0: [30]}, {2: [9]}]


def test_one_task_at_a_time() -> None:
    assert sizes(budget=64, rows=32, one_task=True) == [{2: [9, 8, 7, 6, 5]}, {1: [50]}, {0: [30, 30]}]


def test_tokens() -> None:
    (whole,) = worst_micro_batches(LENGTHS, budget=4096, rows=(2, 1, 3), one_task=False)
    assert most_tokens(LENGTHS, (2, 1, 3)) == [60, 50, 24]
    assert tokens_of(whole, LENGTHS) == 134


def test_rows_are_shared_by_ranks() -> None:
    sampling = Sampling("proportional", (300, 200, 100), 10)
    assert rows_per_rank(sampling, 1) == (15, 10, 5)
    assert rows_per_rank(sampling, 4) == (4, 3, 2)
