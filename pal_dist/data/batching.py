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

from pal_dist.core.units import ceil_div
from pal_dist.data.sampling import Sampling

Rows = NDArray[np.int64]
"""Positions of examples in their task's corpus, shape (examples,)."""

StepRows = list[tuple[int, Rows]]
"""What one optimizer step serves, over all ranks: (task, its rows) of each task that it serves."""


@dataclass(frozen=True)
class MicroBatch:
    """What one rank runs through the model at once: rows of several tasks."""

    parts: tuple[tuple[int, Rows], ...]
    """(task, its rows, the longest first), tasks in the order in which the step serves them. A part is empty where
    another rank has rows of that task in the same micro-step: every rank then runs the same modules."""

    @property
    def examples(self) -> int:
        return sum(len(rows) for _, rows in self.parts)


def pass_order(
    lengths: NDArray[np.int32], *, block: int, window: int, seed: tuple[int, ...], even: bool = False
) -> Rows:
    """Order of one pass over a task: shuffled, made into blocks within windows of `window` blocks, blocks shuffled.

    Every example appears once. Which block comes when stays random. Only the last block of a pass may be shorter than
    `block`.

    Args:
        even: the blocks of a window hold nearly as many tokens each, of all lengths, so that steps of few sizes serve
            the whole pass. Otherwise lengths within a block are alike, so that its rows run together where attention
            goes by length.
    """
    blocks_of = _even_blocks if even else _alike_blocks
    random = np.random.default_rng(seed)
    order = random.permutation(len(lengths))
    in_order: list[Rows] = []
    for start in range(0, len(order), window * block):
        blocks, short = blocks_of(order[start : start + window * block], lengths, block, random)
        in_order += [blocks[index] for index in random.permutation(len(blocks)) if len(blocks[index])]
        in_order += [short] if len(short) else []
    return np.concatenate(in_order)


def _alike_blocks(
    rows: Rows, lengths: NDArray[np.int32], block: int, random: np.random.Generator
) -> tuple[list[Rows], Rows]:
    """(blocks of rows of like lengths, the rows that make no whole block)."""
    rows = rows[np.argsort(lengths[rows], kind="stable")]  # stable: equal lengths keep their random order
    short = len(rows) % block
    # The short block's place among the lengths is random too: always cutting it off the end would give the longest
    # texts a smaller step, and so a larger weight, in every pass.
    offset = block * int(random.integers(len(rows) // block + 1)) if short else 0
    blocks = np.split(np.concatenate([rows[:offset], rows[offset + short :]]), len(rows) // block or 1)
    return blocks, rows[offset : offset + short]


def _even_blocks(
    rows: Rows, lengths: NDArray[np.int32], block: int, random: np.random.Generator
) -> tuple[list[Rows], Rows]:
    """(blocks that hold nearly as many tokens each, the rows that make no whole block).

    The rows are in random order, so that those left over are any.
    """
    count, short = divmod(len(rows), block)
    dealt, _ = _deal_in_rounds(lengths[rows[short:]].astype(np.int64), count)
    return list(rows[short:][dealt].T), rows[:short]


def _deal_in_rounds(sizes: NDArray[np.int64], bins: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(places of rows, (rounds, bins); tokens of each bin) for as many rows in each bin, and nearly as many tokens.

    In a round the longest rows that are left are dealt, one to each bin: the longest of them to the bin that has least.
    """
    dealt, tokens = np.empty((len(sizes) // bins if bins else 0, bins), dtype=np.int64), np.zeros(bins, dtype=np.int64)
    for number, group in enumerate(np.argsort(-sizes, kind="stable").reshape(dealt.shape)):
        least_loaded = np.argsort(tokens, kind="stable")
        dealt[number, least_loaded] = group
        tokens[least_loaded] += sizes[group]
    return dealt, tokens


class Schedule:
    """The examples that each optimizer step serves.

    A task's corpus is passed over again and again, reshuffled each time. A step never reaches over the end of a pass
    (its last serving may be smaller), so no example appears twice in one step.
    """

    even = False
    """What makes a batch, see `pass_order`; to be set before the first step."""

    def __init__(self, sampling: Sampling, lengths: list[NDArray[np.int32]], *, window: int = 64):
        self.sampling, self.lengths, self.window = sampling, lengths, window
        self._order = lru_cache(maxsize=2 * len(lengths))(self._pass_order)

    def _pass_order(self, task: int, number: int, block: int) -> Rows:
        seed = (self.sampling.seed, task, number)
        return pass_order(self.lengths[task], block=block, window=self.window, seed=seed, even=self.even)

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


def assign_micro_batches(
    step_rows: StepRows,
    lengths: list[NDArray[np.int32]],
    *,
    budget: int,
    ranks: int,
    separate_tasks: bool = False,
    even_tasks: bool = False,
) -> list[list[MicroBatch]]:
    """Every rank's micro-batches of one step: result[micro_step][rank].

    The rows of all tasks are dealt together into as few micro-steps as the budget allows, so that all micro-batches
    hold nearly as many tokens. Every rank works this out for all ranks, since what it gets depends on what the others
    have; nothing but lengths is looked at.

    Args:
        budget: most tokens of a micro-batch; a longer row stands alone.
        separate_tasks: each micro-step serves one task, tasks one after the other.
        even_tasks: each task's rows are dealt evenly by themselves, where the budget allows, so that its slices have
            few sizes. Otherwise all rows are dealt together.
    """
    if even_tasks and not separate_tasks:
        dealt = _evenly_by_task(step_rows, lengths, budget=budget, ranks=ranks)
        if dealt is not None:
            return dealt
    groups = [[part] for part in step_rows] if separate_tasks else [step_rows]
    loads = np.zeros(ranks, dtype=np.int64)
    return [
        micro_step
        for group in groups
        for micro_step in _micro_steps(group, lengths, budget=budget, ranks=ranks, loads=loads)
    ]


def _micro_steps(
    step_rows: StepRows, lengths: list[NDArray[np.int32]], *, budget: int, ranks: int, loads: NDArray[np.int64]
) -> list[list[MicroBatch]]:
    """The micro-steps that serve these rows. `loads`: tokens that each rank has already; is added to."""
    sizes = np.concatenate([lengths[task][rows] for task, rows in step_rows]).astype(np.int64)
    longest = sizes.max()
    # In the smallest type that holds lengths: numpy sorts short integers several times faster.
    longest_first = np.argsort((longest - sizes).astype(np.min_scalar_type(longest)), kind="stable")
    bins, tokens = _deal(sizes[longest_first], budget, ranks)
    # Heavy bins to ranks that have little so far, micro-step by micro-step.
    micro_step, rank = np.zeros(len(tokens), dtype=np.int64), np.zeros(len(tokens), dtype=np.int64)
    heaviest = np.argsort(-tokens, kind="stable")
    for number, start in enumerate(range(0, len(tokens), ranks)):
        group = heaviest[start : start + ranks]
        micro_step[group], rank[group] = number, np.argsort(loads, kind="stable")
        loads[rank[group]] += tokens[group]
    place = np.empty(len(sizes), dtype=np.int64)
    place[longest_first] = (micro_step * ranks + rank)[bins]
    return _gathered(step_rows, place, longest_first, len(tokens) // ranks, ranks)


def _evenly_by_task(
    step_rows: StepRows, lengths: list[NDArray[np.int32]], *, budget: int, ranks: int
) -> list[list[MicroBatch]] | None:
    """The fewest micro-steps that all tokens fit in, each micro-batch with as many rows of each task, and nearly as
    many tokens, as any other; None where one would be over the budget, or rows do not go round."""
    tokens_in_all = sum(int(lengths[task][rows].sum()) for task, rows in step_rows)
    bins = ranks * max(1, ceil_div(tokens_in_all, ranks * budget))
    if any(len(rows) % bins for _, rows in step_rows):
        return None
    parts: list[list[tuple[int, Rows]]] = [[] for _ in range(bins)]
    loads = np.zeros(bins, dtype=np.int64)
    for task, rows in step_rows:
        dealt, tokens = _deal_in_rounds(lengths[task][rows].astype(np.int64), bins)
        for part, column in zip(parts, dealt.T, strict=True):
            part.append((task, rows[column]))
        loads += tokens
    if loads.max() > budget:
        return None
    return [[MicroBatch(tuple(part)) for part in parts[start : start + ranks]] for start in range(0, bins, ranks)]


def _deal(sizes: NDArray[np.int64], budget: int, ranks: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(bin of each row, tokens of each bin) for the fewest bins, a multiple of `ranks`, that hold rows of these sizes,
    the longest first. No bin is over the budget but by a row that stands alone."""
    count, tokens_in_all = len(sizes), int(sizes.sum())
    one_row_each = ceil_div(count, ranks)
    each = min(max(1, ceil_div(tokens_in_all, ranks * budget)), one_row_each)
    while True:
        if each * ranks == 1:
            return np.zeros(count, dtype=np.int64), sizes.sum(keepdims=True)
        bins, tokens = _longest_to_least_loaded(sizes, each * ranks)
        too_full = (tokens > budget) & (np.bincount(bins, minlength=each * ranks) > 1)
        if each == one_row_each or not too_full.any():
            return bins, tokens
        each += 1


def _longest_to_least_loaded(sizes: NDArray[np.int64], bins: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(bin of each row, tokens of each bin): each row in turn goes to the bin that has least.

    Worked out for many rows at a time: the next rows go to the bins that have least, in this order, up to the first bin
    that has more than one of those before it with its new row. So a bin with one very long row gets no other until the
    rest have as much.
    """
    chosen, tokens = np.empty(len(sizes), dtype=np.int64), np.zeros(bins, dtype=np.int64)
    start = 0
    while start < len(sizes):
        dealt = sizes[start : start + bins]
        least_loaded = np.argsort(tokens, kind="stable")[: len(dealt)]
        before = tokens[least_loaded]
        after = before + dealt
        overtaken = before[1:] > np.minimum.accumulate(after)[:-1]
        stop = int(overtaken.argmax()) + 1 if overtaken.any() else len(dealt)
        chosen[start : start + stop] = least_loaded[:stop]
        tokens[least_loaded[:stop]] = after[:stop]
        start += stop
    return chosen, tokens


def _gathered(
    step_rows: StepRows, place: NDArray[np.int64], longest_first: NDArray[np.int64], micro_steps: int, ranks: int
) -> list[list[MicroBatch]]:
    """Micro-batches from each row's place, micro_step * ranks + rank."""
    ends = np.cumsum([0, *(len(rows) for _, rows in step_rows)])
    parts: list[list[tuple[int, Rows]]] = [[] for _ in range(micro_steps * ranks)]
    for (task, rows), first, last in zip(step_rows, ends, ends[1:], strict=False):
        own = longest_first[(longest_first >= first) & (longest_first < last)]
        by_place = own[np.argsort(place[own], kind="stable")]
        counts = np.bincount(place[by_place], minlength=len(parts))
        served = counts.reshape(micro_steps, ranks).any(axis=1).repeat(ranks)
        pieces = np.split(rows[by_place - first], np.cumsum(counts)[:-1])
        for part, piece, is_served in zip(parts, pieces, served.tolist(), strict=True):
            if is_served:
                part.append((task, piece))
    return [[MicroBatch(tuple(parts[number * ranks + rank])) for rank in range(ranks)] for number in range(micro_steps)]


def micro_batches(
    step_rows: StepRows,
    lengths: list[NDArray[np.int32]],
    *,
    budget: int,
    rank: int,
    ranks: int,
    separate_tasks: bool = False,
    even_tasks: bool = False,
) -> list[MicroBatch]:
    """This rank's micro-batches of one step: the same number, of the same tasks in the same order, on every rank."""
    micro_steps = assign_micro_batches(
        step_rows, lengths, budget=budget, ranks=ranks, separate_tasks=separate_tasks, even_tasks=even_tasks
    )
    return [by_rank[rank] for by_rank in micro_steps]


def evaluation_batches(lengths: NDArray[np.int32], *, budget: int, rank: int, ranks: int) -> list[Rows]:
    """This rank's share of a whole split, longest first, each batch within the budget.

    Ranks may get one batch more or less than others: evaluation meets the other ranks only once, at its end.
    """
    order = np.argsort(-lengths, kind="stable")
    before = np.concatenate([[0], np.cumsum(lengths[order], dtype=np.int64)])
    firsts = [0]
    while True:
        full = int(np.searchsorted(before, before[firsts[-1]] + budget, side="right")) - 1
        following = max(firsts[-1] + 1, full)
        if following >= len(order):
            return np.split(order, firsts[1:])[rank::ranks]
        firsts.append(following)
