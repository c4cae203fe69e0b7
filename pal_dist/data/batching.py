"""From lengths to micro-batches: every optimizer step's examples, cut by a token budget, evenly over the ranks.

Pure functions of (seed, step, lengths): the examples of a step depend neither on the token budget nor on the number of
ranks, so neither changes the gradient. No torch here.

A piece is what becomes one micro-batch: examples that stand side by side, the longest first. Pieces are told by their
`firsts`, the position at which each begins.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import gcd

import numpy as np
from numpy.typing import NDArray

from pal_dist.core.units import ceil_div, round_up
from pal_dist.data.sampling import Sampling

Rows = NDArray[np.int64]
"""Positions of examples in their task's corpus, shape (examples,)."""

StepRows = list[tuple[int, Rows]]
"""What one optimizer step serves, over all ranks: (task, its rows) of each task that it serves."""

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
    in_order: list[Rows] = []
    for start in range(0, len(order), window * block):
        rows = order[start : start + window * block]
        rows = rows[np.argsort(lengths[rows], kind="stable")]  # stable: equal lengths keep their random order
        short = len(rows) % block
        # The short block's place among the lengths is random too: always cutting it off the end would give the
        # longest texts a smaller step, and so a larger weight, in every pass.
        offset = block * int(random.integers(len(rows) // block + 1)) if short else 0
        blocks = np.split(np.concatenate([rows[:offset], rows[offset + short :]]), len(rows) // block or 1)
        in_order += [blocks[index] for index in random.permutation(len(blocks)) if len(blocks[index])]
        in_order += [rows[offset : offset + short]] if short else []
    return np.concatenate(in_order)


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

    def steps(self, start: int, stop: int) -> Iterator[StepRows]:
        """(task, rows) of each step in [start, stop). Earlier steps are replayed as arithmetic only."""
        sizes = self.sampling.sizes
        passes, positions, blocks = [0] * len(sizes), [0] * len(sizes), [self.sampling.batch_size] * len(sizes)
        for step in range(stop):
            step_rows: StepRows = []
            for task, count in enumerate(self.sampling.counts(step).tolist()):
                if not count:
                    continue
                if positions[task] == 0 and self.sampling.kind != "random":
                    blocks[task] = count  # so that blocks and servings coincide throughout the pass
                first, last = positions[task], min(positions[task] + count, sizes[task])
                if step >= start:
                    step_rows.append((task, self._order(task, passes[task], blocks[task])[first:last]))
                positions[task] = last % sizes[task]
                passes[task] += last == sizes[task]
            if step >= start:
                yield step_rows


def pack_micro_batches(
    lengths: NDArray[np.int32],
    *,
    budget: int,
    ranks: int = 1,
    multiple: int = 1,
    cost: int = MICRO_BATCH_COST,
    loads: NDArray[np.int64] | None = None,
) -> list[list[Rows]]:
    """Cut examples into micro-batches: result[micro_step][rank] are positions in `lengths` (empty: a filler's).

    A micro-batch holds neighbours in length, at most `budget` tokens of them, padding to `multiple` included (a longer
    example stands alone). One rank gets the cheapest of all such cuts: padded tokens plus `cost` each. Several ranks
    get the same number of micro-batches each, of nearly one size; that number is what costs the slowest rank least.

    Args:
        loads: what each rank has from earlier tasks of the step, shape (ranks,), in tokens with padding plus tokens
            without; it is added to. Larger micro-batches go to ranks that have less.
    """
    order, padded = _longest_first(lengths, multiple)
    sizes = padded.tolist()
    firsts = _cheapest_pieces(sizes, budget, cost) if ranks == 1 else _even_pieces(sizes, budget, ranks, cost)
    pieces = [order[first:last] for first, last in pairwise([*firsts, len(order)])]
    useful = np.add.reduceat(lengths[order], firsts, dtype=np.int64)
    weights = np.diff([*firsts, len(order)]) * padded[firsts] + useful
    loads = np.zeros(ranks, dtype=np.int64) if loads is None else loads
    heaviest = np.argsort(-weights, kind="stable")
    micro_steps: list[list[Rows]] = []
    for start in range(0, len(pieces), ranks):
        group = heaviest[start : start + ranks]
        least_loaded = np.argsort(loads, kind="stable")[: len(group)]
        loads[least_loaded] += weights[group]
        by_rank = [order[:0]] * ranks
        for rank, piece in zip(least_loaded.tolist(), group.tolist(), strict=True):
            by_rank[rank] = pieces[piece]
        micro_steps.append(by_rank)
    return micro_steps


def _cheapest_pieces(sizes: list[int], budget: int, cost: int) -> list[int]:
    """Firsts of the pieces that cost least together. `sizes` are padded lengths, the longest first."""
    padded, count = np.asarray(sizes), len(sizes)
    least_cost = np.zeros(count + 1)  # of everything from a position on; the longest of a piece stands first
    next_first = np.zeros(count, dtype=np.int64)  # of the best piece that begins at a position: where the next begins
    for first in range(count - 1, -1, -1):
        ends = np.arange(first + 1, min(first + max(1, budget // sizes[first]), count) + 1)
        costs = (ends - first) * padded[first] + cost + least_cost[ends]
        best = int(costs.argmin())
        least_cost[first], next_first[first] = costs[best], ends[best]
    firsts = [0]
    while (following := int(next_first[firsts[-1]])) < count:
        firsts.append(following)
    return firsts


def _even_pieces(sizes: list[int], budget: int, ranks: int, cost: int) -> list[int]:
    """Firsts of the same number of pieces for each rank, so that none waits long for another.

    For every number of pieces that may pay, the largest piece is made as small as can be; what the last one falls short
    of it is then spread over all. Every rank does this in every step: trying every end of every piece, as for one rank,
    would take longer than the step where ranks are many.
    """
    count, tokens = len(sizes), sum(sizes)
    best: tuple[float, int, int] | None = None
    each = max(1, tokens // (ranks * budget))
    while best is None or (each * ranks < count + ranks and tokens / ranks + each * cost < best[0]):
        low, high = min(budget, ceil_div(tokens, each * ranks)), budget
        if _filled_pieces(sizes, high, each * ranks):
            while low < high:
                middle = (low + high) // 2
                low, high = (low, middle) if _filled_pieces(sizes, middle, each * ranks) else (middle + 1, high)
            candidate = each * (max(high, sizes[0]) + cost), high, each * ranks
            best = candidate if best is None else min(best, candidate)
        each += 1
    _, largest, pieces = best
    return _levelled_pieces(sizes, _filled_pieces(sizes, largest, pieces), largest, min(pieces, count))


def _filled_pieces(sizes: list[int], largest: int, most: int) -> list[int]:
    """Firsts of pieces filled up to `largest` tokens one by one; empty where `most` are not enough."""
    firsts, position, count = [0], 0, len(sizes)
    while (position := position + (largest // sizes[position] or 1)) < count:
        firsts.append(position)
        if len(firsts) > most:
            return []
    return firsts


def _levelled_pieces(sizes: list[int], firsts: list[int], largest: int, pieces: int) -> list[int]:
    """Firsts of exactly so many `pieces` of the same examples, of nearly the mean size, none above `largest`.

    From the shortest examples on, where one more or less is little: pieces begin earlier than before, never later, so
    what is left for those before them fits.
    """
    count = len(sizes)
    firsts = firsts + [count] * (pieces - len(firsts))
    filled = sum((last - first) * sizes[first] for first, last in pairwise([*firsts, count]) if last > first)
    before = np.cumsum([0, *sizes]) * (filled / sum(sizes))  # tokens before a position, padding within pieces included
    last = count
    for piece in range(pieces - 1, 0, -1):
        target = float(before[last]) / (piece + 1)
        # Sizes of a piece of 1, 2, ... examples that ends here: they rise in both factors.
        most = min(last - piece, int(2 * target / sizes[last - 1]) + 2)
        rows = bisect_right(range(1, most), target, key=lambda rows: rows * sizes[last - rows]) or 1
        size, larger = rows * sizes[last - rows], (rows + 1) * sizes[last - rows - 1]
        if rows < most and larger <= largest and larger - target < target - size:
            rows += 1
        last = firsts[piece] = min(last - rows, firsts[piece])
    return firsts


def _longest_first(lengths: NDArray[np.int32], multiple: int) -> tuple[Rows, NDArray[np.int64]]:
    """Positions by falling padded length, and those lengths. Among equals long and short alternate: every run of
    neighbours then holds about as much text."""
    padded = round_up(lengths.astype(np.int64), multiple)
    order = np.argsort(-lengths, kind="stable")
    ends = [0, *(np.flatnonzero(np.diff(padded[order])) + 1).tolist(), len(order)]
    for first, last in pairwise(ends) if multiple > 1 else ():
        order[first:last] = order[first:last][_alternating(last - first)]
    return order, padded[order]


@lru_cache(maxsize=1024)
def _alternating(count: int) -> NDArray[np.int64]:
    """A permutation of which every run is spread evenly: steps of the golden section around `count` places."""
    step = next(step for step in range(max(1, round(0.618 * count)), 2 * count + 1) if gcd(step, count) == 1)
    return np.arange(count) * step % count


def assign_micro_batches(
    step_rows: StepRows,
    lengths: list[NDArray[np.int32]],
    *,
    budget: int,
    ranks: int,
    multiple: int,
    cost: int = MICRO_BATCH_COST,
) -> Iterator[tuple[int, Rows, list[Rows]]]:
    """(task, its rows, each rank's positions in them) of every micro-step, tasks in the order in which they are served.

    Every rank works this out for all ranks, since what it gets depends on what the others have; nothing but lengths is
    looked at.
    """
    loads = np.zeros(ranks, dtype=np.int64)
    for task, rows in step_rows:
        for by_rank in pack_micro_batches(
            lengths[task][rows], budget=budget, ranks=ranks, multiple=multiple, cost=cost, loads=loads
        ):
            yield task, rows, by_rank


def micro_batches(
    step_rows: StepRows,
    lengths: list[NDArray[np.int32]],
    *,
    budget: int,
    rank: int,
    ranks: int,
    multiple: int,
    cost: int = MICRO_BATCH_COST,
) -> list[MicroBatch]:
    """This rank's micro-batches of one step: the same number, tasks in the same order, on every rank."""
    micro_steps = assign_micro_batches(step_rows, lengths, budget=budget, ranks=ranks, multiple=multiple, cost=cost)
    return [_micro_batch(task, rows, by_rank[rank], lengths[task]) for task, rows, by_rank in micro_steps]


def _micro_batch(task: int, rows: Rows, positions: Rows, lengths: NDArray[np.int32]) -> MicroBatch:
    if len(positions):
        return MicroBatch(task, rows[positions])
    return MicroBatch(task, rows[[lengths[rows].argmin()]], filler=True)  # the least that can keep a rank in step


def evaluation_batches(lengths: NDArray[np.int32], *, budget: int, rank: int, ranks: int, multiple: int) -> list[Rows]:
    """This rank's share of a whole split, longest first, each batch within the budget.

    Ranks may get one batch more or less than others: evaluation meets the other ranks only once, at its end.
    """
    order, padded = _longest_first(lengths, multiple)
    firsts = [0]
    while (following := firsts[-1] + max(1, budget // int(padded[firsts[-1]]))) < len(padded):
        firsts.append(following)
    return np.split(order, firsts[1:])[rank::ranks]
