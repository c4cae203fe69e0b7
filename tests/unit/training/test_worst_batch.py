"""The worst micro-batches: every task's longest examples, as many as budget and step hold, the largest last."""

from __future__ import annotations

import numpy as np

from pal_dist.core.units import round_up
from pal_dist.training.worst_batch import worst_micro_batches

LENGTHS = [np.array(lengths, dtype=np.int32) for lengths in ([9, 30, 12, 30], [50, 7, 21], [5, 6, 7, 8, 9])]


def sizes(tokens: int, rows: int) -> list[tuple[int, list[int]]]:
    worst = worst_micro_batches(LENGTHS, tokens=tokens, rows=rows, padded_length=lambda length: round_up(length, 8))
    return [(micro.task, LENGTHS[micro.task][micro.rows].tolist()) for micro in worst]


def test_the_budget_limits_them() -> None:
    assert sizes(tokens=64, rows=32) == [(1, [50]), (0, [30, 30]), (2, [9, 8, 7, 6])]


def test_a_step_limits_them() -> None:
    assert sizes(tokens=4096, rows=2) == [(2, [9, 8]), (0, [30, 30]), (1, [50, 21])]


def test_one_example_runs_in_any_case() -> None:
    assert [rows for _, rows in sizes(tokens=1, rows=2)] == [[9], [30], [50]]
