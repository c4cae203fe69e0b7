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
Measured for MiniLM on a CPU (tests/bench/profile_step.py); it only steers speed, never the gradient."""


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


def cut(lengths: NDArray[np.int32], *, budget: int, ranks: int = 1, multiple: int = 1) -> list[list[Rows]]:
    """Cut examples into micro-batches: result[micro_step][rank] are positions in `lengths` (empty: a filler's place).

    Neighbours in length share a micro-batch; each holds at most `budget` tokens, padding to `multiple` included (a
    single longer example stands alone); all ranks get the same number; the costliest are spread over the ranks.
    """
    order, padded = _longest_first(lengths, multiple)
    best: list[int] | None = None
    cost = np.inf
    least = max(-(-int(lengths.sum()) // (budget * ranks)), 1) * ranks
    for groups in range(least, len(lengths) + ranks, ranks):
        bounds = _balanced(padded, groups)
        sizes = np.diff([*bounds, len(padded)])
        tokens = sizes * padded[bounds]
        if np.any((tokens > budget) & (sizes > 1)):
            continue
        total = int(tokens.max()) * (groups // ranks) * ranks + MICRO_BATCH_COST * groups
        if total >= cost:
            break
        best, cost = bounds, total
    if best is None:
        best = list(range(len(padded)))
    pieces = [order[first:last] for first, last in zip(best, [*best[1:], len(order)], strict=True)]
    pieces += [order[:0]] * (-len(pieces) % ranks)
    # Pieces come longest sequence first. Every other micro-step runs over the ranks backwards, which evens them out.
    steps = [pieces[first : first + ranks] for first in range(0, len(pieces), ranks)]
    return [step if index % 2 == 0 else step[::-1] for index, step in enumerate(steps)]


def _longest_first(lengths: NDArray[np.int32], multiple: int) -> tuple[Rows, NDArray[np.int64]]:
    order = np.argsort(-lengths, kind="stable")
    return order, -(-lengths[order].astype(np.int64) // multiple) * multiple


def _balanced(padded: NDArray[np.int64], groups: int) -> list[int]:
    """First positions of at most `groups` runs of falling lengths whose largest token count is as small as can be."""
    low, high = int(padded[0]), int(padded[0]) * len(padded)
    while low < high:
        middle = (low + high) // 2
        if len(_runs(padded, middle)) <= groups:
            high = middle
        else:
            low = middle + 1
    return _runs(padded, high)


def _runs(padded: NDArray[np.int64], cap: int) -> list[int]:
    """First positions of the longest runs of falling lengths that hold at most `cap` tokens each (or one example)."""
    found = [0]
    while (following := found[-1] + max(1, cap // int(padded[found[-1]]))) < len(padded):
        found.append(following)
    return found


def micro_batches(
    served: list[tuple[int, Rows]],
    lengths: list[NDArray[np.int32]],
    *,
    budget: int,
    rank: int,
    ranks: int,
    multiple: int,
) -> list[MicroBatch]:
    """This rank's micro-batches of one step: the same number, tasks in the same order, on every rank."""
    mine: list[MicroBatch] = []
    for task, rows in served:
        for step in cut(lengths[task][rows], budget=budget, ranks=ranks, multiple=multiple):
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
    return np.split(order, _runs(padded, budget)[1:])[rank::ranks]
