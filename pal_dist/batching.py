"""From lengths to micro-batches: every optimizer step's examples, cut by a token budget, evenly over the ranks.

Pure functions of (seed, step, lengths): the examples of a step depend neither on the token budget nor on the number of
ranks, so neither changes the gradient. No torch here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pal_dist.sampling import Sampling

Rows = NDArray[np.int64]
"""Positions of examples in their task's corpus, shape (examples,)."""

MICRO_BATCH_COST = 96
"""Fixed cost of one more forward and backward pass, in tokens: what an extra cut must save in padding to pay.
Measured for MiniLM on a CPU (tests/bench/profile_step.py); for GPUs the plan estimates it. It only steers speed."""


@dataclass(frozen=True)
class MicroBatch:
    """What one rank runs through the model at once."""

    task: int
    rows: Rows
    filler: bool = False
    """True: a repeated example with weight zero, so that every rank runs the same number of micro-batches."""


def pass_order(lengths: NDArray[np.int32], *, block: int, window: int, seed: tuple[int, ...]) -> Rows:
    """Order of one pass over a task: shuffled, sorted by length within windows of `window` blocks, blocks shuffled.

    Every example appears once. Within a block lengths are alike, so batches carry little padding; which block comes
    when stays random. Only the last block of a pass may be shorter than `block`.
    """
    random = np.random.default_rng(seed)
    order = random.permutation(len(lengths))
    pieces: list[Rows] = []
    for start in range(0, len(order), window * block):
        rows = order[start : start + window * block]
        rows = rows[np.argsort(lengths[rows], kind="stable")]  # stable: equal lengths keep their random order
        short = len(rows) % block
        # The short block's place among the lengths is random too: always cutting it off the end would give the
        # longest texts a smaller step, and so a larger weight, in every pass.
        offset = block * int(random.integers(len(rows) // block + 1)) if short else 0
        blocks = np.split(np.concatenate([rows[:offset], rows[offset + short :]]), len(rows) // block or 1)
        pieces += [blocks[index] for index in random.permutation(len(blocks)) if len(blocks[index])]
        pieces += [rows[offset : offset + short]] if short else []
    return np.concatenate(pieces)


class Schedule:
    """The examples that each optimizer step serves.

    A task's corpus is passed over again and again, reshuffled each time. A step never reaches over the end of a pass
    (its last serving may be smaller), so no example appears twice in one step.
    """

    def __init__(self, sampling: Sampling, lengths: list[NDArray[np.int32]], *, window: int = 64):
        self.sampling, self.lengths, self.window = sampling, lengths, window
        self._order = lru_cache(maxsize=2 * len(lengths))(self._pass_order)

    def _pass_order(self, task: int, number: int, block: int) -> Rows:
        seed = (self.sampling.seed, task, number)
        return pass_order(self.lengths[task], block=block, window=self.window, seed=seed)

    def steps(self, start: int, stop: int) -> Iterator[list[tuple[int, Rows]]]:
        """(task, rows) of each step in [start, stop). Earlier steps are replayed as arithmetic only."""
        size = self.sampling.sizes
        passes, places, blocks = [0] * len(size), [0] * len(size), [self.sampling.batch_size] * len(size)
        for step in range(stop):
            served: list[tuple[int, Rows]] = []
            for task, count in enumerate(self.sampling.counts(step).tolist()):
                if not count:
                    continue
                if places[task] == 0 and self.sampling.kind != "random":
                    blocks[task] = count  # so that blocks and servings coincide throughout the pass
                first, last = places[task], min(places[task] + count, size[task])
                if step >= start:
                    served.append((task, self._order(task, passes[task], blocks[task])[first:last]))
                places[task] = last % size[task]
                passes[task] += last == size[task]
            if step >= start:
                yield served


def cut(
    lengths: NDArray[np.int32], *, budget: int, ranks: int = 1, multiple: int = 1, cost: int = MICRO_BATCH_COST
) -> list[list[Rows]]:
    """Cut examples into micro-batches: result[micro_step][rank] are positions in `lengths` (empty: a filler's place).

    A micro-step takes neighbours in length and deals them out to the ranks, so all ranks get the same number of
    micro-batches of nearly the same size. Each holds at most `budget` tokens, padding to `multiple` included (a single
    longer example stands alone). Among all such cuts this is the cheapest: padded tokens plus `cost` each.
    """
    order, padded = _longest_first(lengths, multiple)
    count = len(order)
    least = np.zeros(count + 1)  # least cost of everything from a position on; the longest of a run stands first
    after = np.zeros(count, dtype=np.int64)
    for first in range(count - 1, -1, -1):
        per_rank = max(1, budget // int(padded[first]))
        ends = np.arange(first + 1, min(first + per_rank * ranks, count) + 1)
        costs = -(-(ends - first) // ranks) * padded[first] + cost + least[ends]
        best = int(costs.argmin())
        least[first], after[first] = costs[best], ends[best]
    steps: list[list[Rows]] = []
    first = 0
    while first < count:
        rows = order[first : after[first]]
        # Whoever gets the odd example more changes from one micro-step to the next.
        steps.append([rows[(rank + len(steps)) % ranks :: ranks] for rank in range(ranks)])
        first = int(after[first])
    return steps


def _longest_first(lengths: NDArray[np.int32], multiple: int) -> tuple[Rows, NDArray[np.int64]]:
    order = np.argsort(-lengths, kind="stable")
    return order, -(-lengths[order].astype(np.int64) // multiple) * multiple


def micro_batches(
    served: list[tuple[int, Rows]],
    lengths: list[NDArray[np.int32]],
    *,
    budget: int,
    rank: int,
    ranks: int,
    multiple: int,
    cost: int = MICRO_BATCH_COST,
) -> list[MicroBatch]:
    """This rank's micro-batches of one step: the same number, tasks in the same order, on every rank."""
    mine: list[MicroBatch] = []
    for task, rows in served:
        for step in cut(lengths[task][rows], budget=budget, ranks=ranks, multiple=multiple, cost=cost):
            places = step[rank]
            if len(places):
                mine.append(MicroBatch(task, rows[places]))
            else:
                mine.append(MicroBatch(task, rows[:1], filler=True))
    return mine


def evaluation_batches(lengths: NDArray[np.int32], *, budget: int, rank: int, ranks: int, multiple: int) -> list[Rows]:
    """This rank's share of a whole split, longest first, each batch within the budget.

    Ranks may get one batch more or less than others: evaluation meets the other ranks only once, at its end.
    """
    order, padded = _longest_first(lengths, multiple)
    firsts = [0]
    while (following := firsts[-1] + max(1, budget // int(padded[firsts[-1]]))) < len(padded):
        firsts.append(following)
    return np.split(order, firsts[1:])[rank::ranks]
