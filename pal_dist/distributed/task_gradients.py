"""Each task's gradient of the shared parameters, kept apart until a step's end: one gradient a task, and no graph.

A task's gradient is taken aside as it lies on this rank: whole under DDP and ZeRO, whose ranks hold whole gradients
until the step's one reduction; this rank's shard under FSDP2. Whole ones are summed over the ranks in pieces, of which
each rank keeps a share, only to find their inner products: the weighted sum of what lies aside then goes the usual way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor

from pal_dist.core.units import ceil_div

PIECE_ELEMENTS = 1024 * 1024
"""Elements of every task's gradient that are looked at together."""


class TaskGradients:
    """The gradients of `shared` parameters, by task. Parameters that one task alone has keep theirs."""

    def __init__(self, shared: Sequence[nn.Parameter], tasks: int, *, ranks: int):
        self.shared, self.tasks, self.ranks = list(shared), tasks, ranks
        self.aside: dict[int, list[Tensor]] = {}
        """Each task's gradients of the shared parameters, in the order in which the tasks were done."""
        first = self.shared[0]
        size = min(PIECE_ELEMENTS, sum(_size(parameter) for parameter in self.shared))
        self.share = ceil_div(size, ranks)
        # Allocated once, so that no rank can run out of memory while the others wait for it in a collective.
        self.flat = torch.empty(self.share * ranks, dtype=first.dtype, device=first.device)
        self.rows = torch.empty(tasks * self.share * ranks, dtype=first.dtype, device=first.device)
        own_elements = tasks * self.share if ranks > 1 else 0
        self.own = torch.empty(own_elements, dtype=first.dtype, device=first.device)

    def set_aside(self, task: int, *, last: bool) -> None:
        """The task's last micro-batch of the step is done: its gradient is taken away from the parameters.

        That of the step's `last` task is left with them, for the others to be added to it: under ZeRO-3 a parameter is
        empty by now and would not take a gradient from outside.
        """
        gradients = [parameter.grad for parameter in self.shared]
        assert all(gradient is not None for gradient in gradients), "every task uses every shared parameter"
        self.aside[task] = [gradient for gradient in gradients if gradient is not None]
        for parameter in self.shared if not last else ():
            parameter.grad = None

    def discard(self) -> None:
        """Forget what lies aside."""
        self.aside.clear()

    def gram(self) -> Tensor:
        """(T, T) in float64: inner products of the tasks' gradients, summed over the ranks. Every rank must call it."""
        order = sorted(self.aside)
        local = [[_local(gradient).flatten() for gradient in self.aside[task]] for task in order]
        sharded = isinstance(self.aside[order[0]][0], DTensor)
        total = torch.zeros(len(order), len(order), dtype=torch.float64, device=self.flat.device)
        for piece in self._pieces([part.numel() for part in local[0]]):
            for row, gradients in enumerate(local):
                self._fill(row, gradients, piece)
            if self.ranks > 1 and not sharded:
                distributed.reduce_scatter_tensor(self.own, self.rows)
                rows = self.own.view(self.tasks, self.share)
            else:
                rows = self.rows.view(self.ranks, self.tasks, self.share).transpose(0, 1).flatten(1)
            total += (rows @ rows.T).double()
        if self.ranks > 1:
            distributed.all_reduce(total)
        return total

    def merge(self, weights: Tensor) -> None:
        """Give the parameters the weighted sum of the tasks' gradients, in their own memory; nothing is left aside."""
        for task, weight in zip(sorted(self.aside), weights.to(self.flat.dtype).unbind(), strict=True):
            torch._foreach_mul_([_local(part) for part in self.aside[task]], weight)
        *others, total = self.aside.values()
        for gradients in others:
            torch._foreach_add_([_local(part) for part in total], [_local(part) for part in gradients])
        self.discard()

    def _pieces(self, sizes: list[int]) -> Iterator[list[tuple[int, int, int]]]:
        """Runs of (parameter, first element, last), each run as many elements as `flat` holds, the last one fewer."""
        ends = list(accumulate(sizes, initial=0))
        for start in range(0, ends[-1], len(self.flat)):
            stop = start + len(self.flat)
            yield [
                (index, max(start, first) - first, min(stop, last) - first)
                for index, (first, last) in enumerate(pairwise(ends))
                if first < stop and last > start
            ]

    def _fill(self, row: int, gradients: list[Tensor], piece: list[tuple[int, int, int]]) -> None:
        """Put a task's piece into `rows`, which are laid out as (rank, task, share) for the collective."""
        parts = [gradients[index][first:last] for index, first, last in piece]
        count = sum(part.numel() for part in parts)
        torch.cat(parts, out=self.flat[:count])
        self.flat[count:].zero_()
        self.rows.view(self.ranks, self.tasks, self.share)[:, row] = self.flat.view(self.ranks, self.share)


def _size(parameter: Any) -> int:
    """Elements of the whole parameter, which ZeRO-3 empties."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _local(gradient: Tensor) -> Tensor:
    return gradient.to_local() if isinstance(gradient, DTensor) else gradient
