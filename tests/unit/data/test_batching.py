"""Batching: each example once a pass, none twice a step, within the budget, even over ranks, hardly any padding."""

from __future__ import annotations

from itertools import pairwise
from typing import get_args

import numpy as np
import pytest

from pal_dist.config.resolve import settings
from pal_dist.core.units import round_up
from pal_dist.data.batching import Schedule, evaluation_batches, micro_batches, pack_micro_batches, pass_order
from pal_dist.data.sampling import Sampling
from tests.support.lengths import lengths_like_text


@pytest.mark.parametrize(("count", "block"), [(1000, 32), (997, 32), (31, 32), (32, 32), (1, 8), (4000, 7)])
def test_a_pass_is_a_permutation_with_blocks_alike(count: int, block: int) -> None:
    lengths = lengths_like_text(count)
    order = pass_order(lengths, block=block, window=16, seed=(0, 1, 2))
    assert sorted(order) == list(range(count))
    if count > 10 * block:
        spread = [np.ptp(lengths[order[i : i + block]]) for i in range(0, count - block, block)]
        assert np.median(spread) < np.ptp(lengths) / 10
        first = lengths[order[: 16 * block]][::block]
        assert not all(a <= b for a, b in pairwise(first)), "blocks must come in random order"


def test_passes_and_seeds_differ() -> None:
    lengths = lengths_like_text(500)
    orders = [tuple(pass_order(lengths, block=8, window=4, seed=seed)) for seed in ((0, 0, 0), (0, 0, 1), (1, 0, 0))]
    assert len(set(orders)) == 3


@pytest.mark.parametrize("kind", get_args(settings()["sampling"].kind))
@pytest.mark.parametrize("step_tasks", ["all", "one"])
def test_fresh_examples_in_every_step(kind: str, step_tasks: str) -> None:
    """Distinct example ids per optimizer step equal the step's examples; a pass serves each example once."""
    sizes = (85, 160, 55)
    lengths = [lengths_like_text(size) for size in sizes]
    sampling = Sampling(kind, sizes, batch_size=8, step_tasks=step_tasks, epochs=3, seed=1)
    served: list[list[int]] = [[] for _ in sizes]
    for step, parts in enumerate(Schedule(sampling, lengths, window=4).steps(0, 60)):
        asked = sampling.counts(step)
        for task, rows in parts:
            assert len(set(rows.tolist())) == len(rows) <= asked[task]
            served[task] += rows.tolist()
    for task, size in enumerate(sizes):
        for start in range(0, len(served[task]) - size + 1, size):
            assert sorted(served[task][start : start + size]) == list(range(size))
    longest = max(range(3), key=lambda task: len(served[task]) // sizes[task])
    size = sizes[longest]
    assert served[longest][:size] != served[longest][size : 2 * size], "each pass is shuffled anew"


def test_a_step_can_be_reached_without_those_before() -> None:
    sizes = (85, 160, 55)
    lengths = [lengths_like_text(size) for size in sizes]
    schedule = Schedule(Sampling("random", sizes, batch_size=8, seed=5), lengths)
    whole = list(schedule.steps(0, 40))
    for start in (1, 17, 39):
        for (task, rows), (other_task, other_rows) in zip(whole[start], next(schedule.steps(start, 40)), strict=True):
            assert task == other_task
            np.testing.assert_array_equal(rows, other_rows)


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [1, 2, 7, 32, 200])
@pytest.mark.parametrize("budget", [130, 600, 4096])
@pytest.mark.parametrize("multiple", [1, 8])
def test_micro_batches_keep_within_the_budget(ranks: int, count: int, budget: int, multiple: int) -> None:
    lengths = lengths_like_text(count, seed=count)
    steps = pack_micro_batches(lengths, budget=budget, ranks=ranks, multiple=multiple)
    assert all(len(step) == ranks for step in steps)
    assert sorted(row for step in steps for rows in step for row in rows) == list(range(count))
    for step in steps:
        for rows in step:
            if len(rows) > 1:
                assert len(rows) * round_up(int(lengths[rows].max()), multiple) <= budget


def test_no_rank_waits_long_for_another() -> None:
    """Tokens per rank differ by less than 5 % where there is enough to share."""
    lengths = lengths_like_text(512)
    for ranks in (2, 4):
        steps = pack_micro_batches(lengths, budget=1024, ranks=ranks)
        loads = [
            sum(len(step[rank]) * int(lengths[step[rank]].max()) for step in steps if len(step[rank]))
            for rank in range(ranks)
        ]
        assert max(loads) / np.mean(loads) < 1.05


def test_fillers_keep_ranks_in_step() -> None:
    lengths = [lengths_like_text(3)]
    shares = [
        micro_batches([(0, np.array([0, 2]))], lengths, budget=500, rank=rank, ranks=4, multiple=1) for rank in range(4)
    ]
    assert len({len(share) for share in shares}) == 1
    assert sum(micro.filler for share in shares for micro in share) == 2
    assert sorted(int(row) for share in shares for micro in share if not micro.filler for row in micro.rows) == [0, 2]


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_evaluation_sees_every_example_once(ranks: int) -> None:
    lengths = lengths_like_text(500)
    shares = [evaluation_batches(lengths, budget=900, rank=rank, ranks=ranks, multiple=1) for rank in range(ranks)]
    assert sorted(int(row) for share in shares for rows in share for row in rows) == list(range(500))
    assert all(len(rows) * lengths[rows].max() <= 900 for share in shares for rows in share)
