"""Batching: each example once a pass, none twice a step, within the budget, even over ranks."""

from __future__ import annotations

from itertools import pairwise
from typing import get_args

import numpy as np
import pytest

from pal_dist.config.resolve import settings
from pal_dist.data.batching import (
    MicroBatch,
    Schedule,
    _longest_to_least_loaded,
    assign_micro_batches,
    evaluation_batches,
    micro_batches,
    pass_order,
)
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


def steps_of(counts: tuple[int, ...], seed: int = 0) -> tuple[list[tuple[int, np.ndarray]], list[np.ndarray]]:
    """(what a step serves, lengths by task): so many rows of each task, out of three times as many."""
    lengths = [lengths_like_text(3 * count, seed=seed + task) for task, count in enumerate(counts)]
    draw = np.random.default_rng(seed)
    return [(task, draw.permutation(3 * count)[:count]) for task, count in enumerate(counts)], lengths


def tokens_of(micro: MicroBatch, lengths: list[np.ndarray]) -> int:
    return sum(int(lengths[task][rows].sum()) for task, rows in micro.parts)


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("counts", [(1,), (2, 1, 1), (7, 30), (32, 32, 32), (200, 5, 60)])
@pytest.mark.parametrize("budget", [130, 600, 4096])
def test_every_row_once_within_the_budget(ranks: int, counts: tuple[int, ...], budget: int, separate: bool) -> None:
    step_rows, lengths = steps_of(counts)
    micro_steps = assign_micro_batches(step_rows, lengths, budget=budget, ranks=ranks, separate_tasks=separate)
    assert all(len(by_rank) == ranks for by_rank in micro_steps)
    for task, rows in step_rows:
        dealt = [part for by_rank in micro_steps for micro in by_rank for own, part in micro.parts if own == task]
        assert sorted(np.concatenate(dealt).tolist()) == sorted(rows.tolist())
    for by_rank in micro_steps:
        # Ranks run the same modules in the same order, also where they have no row of a task.
        assert len({tuple(task for task, _ in micro.parts) for micro in by_rank}) == 1
        for task, _ in by_rank[0].parts:
            assert any(len(rows) for micro in by_rank for own, rows in micro.parts if own == task)
        assert not separate or len(by_rank[0].parts) == 1
        for micro in by_rank:
            assert tokens_of(micro, lengths) <= budget
            for task, rows in micro.parts:
                assert (np.diff(lengths[task][rows]) <= 0).all(), "the longest first"


def test_a_step_that_fits_is_one_micro_batch() -> None:
    step_rows, lengths = steps_of((32, 32, 32))
    (alone,) = micro_batches(step_rows, lengths, budget=1 << 20, rank=0, ranks=1)
    assert [(task, len(rows)) for task, rows in alone.parts] == [(0, 32), (1, 32), (2, 32)]


@pytest.mark.parametrize("budget", [600, 1 << 20])
@pytest.mark.parametrize("separate", [False, True])
def test_no_rank_waits_long_for_another(budget: int, separate: bool) -> None:
    """Tokens of a rank in a whole step differ by less than 3 % where there is enough to share."""
    for ranks in (2, 4, 16):
        step_rows, lengths = steps_of((32 * ranks, 32 * ranks, 32 * ranks), seed=ranks)
        micro_steps = assign_micro_batches(step_rows, lengths, budget=budget, ranks=ranks, separate_tasks=separate)
        loads = [sum(tokens_of(by_rank[rank], lengths) for by_rank in micro_steps) for rank in range(ranks)]
        assert max(loads) / np.mean(loads) < 1.03


def test_micro_batches_are_as_few_as_the_budget_allows() -> None:
    step_rows, lengths = steps_of((64, 64, 64))
    tokens = sum(int(lengths[task][rows].sum()) for task, rows in step_rows)
    for budget in (500, 1000, 4000):
        for ranks in (1, 2):
            needed = -(-tokens // (budget * ranks))
            count = len(assign_micro_batches(step_rows, lengths, budget=budget, ranks=ranks))
            assert needed <= count <= needed + 1


@pytest.mark.parametrize("budget", [899, 900, 1000, 2000])
def test_one_long_row_does_not_cut_the_others_smaller(budget: int) -> None:
    """Where the guard against running out of memory has brought the budget down to the longest row, or nearly."""
    lengths = [np.array([900] + [30] * 95, dtype=np.int32)]
    tokens = 900 + 30 * 95
    assert len(micro_batches([(0, np.arange(96))], lengths, budget=budget, rank=0, ranks=1)) == -(-tokens // budget)


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("budget", [16, 150, 500])
def test_rows_longer_than_the_budget_stand_alone(budget: int, ranks: int) -> None:
    """And no micro-step is without rows, however small the budget."""
    lengths = [np.array([900] + [300] * 10, dtype=np.int32), np.full(8, 30, dtype=np.int32)]
    step_rows = [(0, np.arange(11)), (1, np.arange(8))]
    micro_steps = assign_micro_batches(step_rows, lengths, budget=budget, ranks=ranks)
    for by_rank in micro_steps:
        assert any(micro.examples for micro in by_rank)
        assert all(micro.examples <= 1 or tokens_of(micro, lengths) <= budget for micro in by_rank)
    assert sum(micro.examples for by_rank in micro_steps for micro in by_rank) == 19


def test_each_row_goes_to_the_bin_that_has_least() -> None:
    """Many rows at a time as one by one."""
    draw = np.random.default_rng(0)
    for bins in (1, 2, 7, 40):
        for spread in (0.1, 0.5, 1.5):
            sizes = -np.sort(-np.clip(draw.lognormal(3, spread, 200), 2, 512).astype(np.int64))
            one_by_one = np.zeros(bins, dtype=np.int64)
            for size in sizes:
                one_by_one[one_by_one.argmin()] += size
            chosen, tokens = _longest_to_least_loaded(sizes, bins)
            assert sorted(tokens) == sorted(one_by_one)
            assert np.bincount(chosen, weights=sizes, minlength=bins).tolist() == tokens.tolist()


def test_a_rank_without_rows_has_an_empty_part() -> None:
    lengths = [lengths_like_text(3)]
    shares = [micro_batches([(0, np.array([0, 2]))], lengths, budget=500, rank=rank, ranks=4) for rank in range(4)]
    assert [len(share) for share in shares] == [1] * 4
    assert sorted(micro.examples for (micro,) in shares) == [0, 0, 1, 1]
    assert all([task for task, _ in micro.parts] == [0] for (micro,) in shares)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_evaluation_sees_every_example_once(ranks: int) -> None:
    lengths = lengths_like_text(500)
    shares = [evaluation_batches(lengths, budget=900, rank=rank, ranks=ranks) for rank in range(ranks)]
    assert sorted(int(row) for share in shares for rows in share for row in rows) == list(range(500))
    assert all(lengths[rows].sum() <= 900 for share in shares for rows in share)
    assert sum(map(len, shares)) <= 1.2 * lengths.sum() / 900 + 1


def test_a_row_longer_than_the_budget_stands_alone() -> None:
    lengths = np.array([5, 900, 7, 1], dtype=np.int32)
    assert [rows.tolist() for rows in evaluation_batches(lengths, budget=10, rank=0, ranks=1)] == [[1], [2], [0, 3]]


@pytest.mark.parametrize(("ranks", "budget"), [(1, 4000), (4, 4000), (4, 400), (3, 4000), (2, 60)])
def test_tasks_dealt_evenly_are_the_same_step(ranks: int, budget: int) -> None:
    """Every row once, no micro-batch over the budget; where rows go round, as many of each task everywhere."""
    random = np.random.default_rng(ranks)
    lengths = [random.integers(3, 60, 100).astype(np.int32) for _ in range(2)]
    served = [(0, random.permutation(100)[:16]), (1, random.permutation(100)[:24])]
    steps = assign_micro_batches(served, lengths, budget=budget, ranks=ranks, even_tasks=True)
    assert all(len(step) == ranks for step in steps)
    for task, rows in served:
        dealt = np.concatenate([own for step in steps for micro in step for of, own in micro.parts if of == task])
        assert sorted(dealt.tolist()) == sorted(rows.tolist())
    every = [micro for step in steps for micro in step]
    assert all(micro.examples == 1 or sum(lengths[t][r].sum() for t, r in micro.parts) <= budget for micro in every)
    if 16 % len(every) == 0 and 24 % len(every) == 0:
        assert len({tuple(len(rows) for _, rows in micro.parts) for micro in every}) == 1
