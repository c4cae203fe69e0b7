"""The largest micro-batches that a step of a run can meet: what is planned, traced and proved before the first step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pal_dist.core.units import ceil_div
from pal_dist.data.batching import MicroBatch, Rows
from pal_dist.data.sampling import Sampling


def rows_per_rank(sampling: Sampling, ranks: int) -> tuple[int, ...]:
    """Most examples of each task that one rank meets in a step."""
    return tuple(ceil_div(rows, ranks) for rows in sampling.most_rows)


def most_tokens(lengths: Sequence[NDArray[np.int32]], rows: Sequence[int]) -> list[int]:
    """Tokens of each task's longest examples, as many of them as one rank meets in a step (`rows`, by task)."""
    return [int(lengths[task][own].sum()) for task, own in enumerate(_longest(lengths, rows))]


def worst_micro_batches(
    lengths: Sequence[NDArray[np.int32]], *, budget: int, rows: Sequence[int], one_task: bool
) -> list[MicroBatch]:
    """The largest micro-batch that one rank can meet, of the longest examples of all tasks; where the budget leaves no
    room for one of each, further ones of the tasks that are left. It comes twice where a step can have several: the
    second meets the gradients of the first.

    Args:
        lengths: tokens of every training example, by task.
        budget: most tokens of a micro-batch.
        rows: most examples of each task that one rank meets in a step.
        one_task: a micro-batch holds one task's rows: one of each task then, the largest last.
    """
    longest = _longest(lengths, rows)
    if one_task:
        worst = [MicroBatch(((task, _within(lengths[task], own, budget)),)) for task, own in enumerate(longest)]
        return sorted(worst, key=lambda micro: tokens_of(micro, lengths))
    tasks = np.concatenate([np.full(len(own), task) for task, own in enumerate(longest)])
    every = np.concatenate(longest)
    sizes = np.concatenate([lengths[task][own] for task, own in enumerate(longest)])
    first_of_task = np.concatenate([np.arange(len(own)) == 0 for own in longest])
    # One of each task first, then the longest of all.
    order = np.lexsort((-sizes, ~first_of_task))
    inside = order[: max(1, int(np.searchsorted(np.cumsum(sizes[order]), budget, side="right")))]
    parts = [(task, every[inside[tasks[inside] == task]]) for task in range(len(lengths))]
    largest = MicroBatch(
        tuple((task, own[np.argsort(-lengths[task][own], kind="stable")]) for task, own in parts if len(own))
    )
    left_out = [MicroBatch(((task, longest[task][:1]),)) for task, own in parts if not len(own)]
    several = len(inside) < len(every)
    return [*left_out, *[largest] * (2 if several else 1)]


def tokens_of(micro: MicroBatch, lengths: Sequence[NDArray[np.int32]]) -> int:
    """Tokens of a micro-batch."""
    return sum(int(lengths[task][rows].sum()) for task, rows in micro.parts)


def _longest(lengths: Sequence[NDArray[np.int32]], rows: Sequence[int]) -> list[Rows]:
    """Each task's longest examples, the longest first."""
    return [
        np.argsort(-of_task, kind="stable")[:count].astype(np.int64)
        for of_task, count in zip(lengths, rows, strict=True)
    ]


def _within(lengths: NDArray[np.int32], rows: Rows, budget: int) -> Rows:
    """As many of the rows as the budget holds, at least one."""
    return rows[: max(1, int(np.searchsorted(np.cumsum(lengths[rows]), budget, side="right")))]
