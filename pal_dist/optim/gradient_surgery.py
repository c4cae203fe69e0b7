"""Gradient conflict between tasks, resolved from the tasks' Gram matrix alone.

PCGrad and GradVac add multiples of the tasks' gradients to each other, so what comes out is a weighted sum of them, and
the weights follow from the gradients' inner products. Nothing here ever holds a gradient; nothing waits for the device.

Shapes: T tasks. gram_TT holds the inner products of the tasks' gradients, each summed over all ranks.
Sources: Yu et al. 2020, Gradient surgery for multi-task learning (algorithm 1); Wang et al. 2020, Gradient vaccine
(algorithm 1, equation 3).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

TARGET_RATE = 1e-2
"""GradVac's beta: how fast the targets follow the cosines that are seen."""

OtherTasks = NDArray[np.int64]
"""(T, T - 1): for each task the others, in the order in which its gradient meets them."""


def draw_others(tasks: int, seed: int, step: int) -> OtherTasks:
    """Both papers' random order, a function of (seed, step): the same on every rank and after a resume."""
    random = np.random.default_rng([seed, step, tasks])
    rows = [random.permutation([other for other in range(tasks) if other != task]) for task in range(tasks)]
    return np.asarray(rows, dtype=np.int64).reshape(tasks, tasks - 1)


def cosines(gram_TT: Tensor) -> Tensor:
    """(T, T): the cosine of the angle between each two tasks' gradients; 0 where a gradient is zero."""
    norms = gram_TT.diagonal().clamp_min(0).sqrt()
    scale = norms[:, None] * norms[None, :]
    return torch.where(scale > 0, gram_TT / scale, 0.0)


def watch(gram_TT: Tensor, others: OtherTasks, targets_TT: Tensor) -> tuple[Tensor, Tensor]:
    """The plain sum: cosines are looked at, nothing is changed."""
    return torch.ones_like(gram_TT[0]), targets_TT


def pcgrad(gram_TT: Tensor, others: OtherTasks, targets_TT: Tensor) -> tuple[Tensor, Tensor]:
    """Each task's gradient loses its component along every other task's gradient that it points against."""
    mixed_TT = torch.eye(len(gram_TT), dtype=gram_TT.dtype, device=gram_TT.device)
    for meets in others.T:  # all tasks at once: each meets its next one
        place, square_T, dot_T = _meet(gram_TT, mixed_TT, meets)
        mixed_TT[place] -= torch.where(square_T > 0, dot_T.clamp_max(0) / square_T, 0.0)
    return mixed_TT.sum(dim=0), targets_TT


def gradvac(gram_TT: Tensor, others: OtherTasks, targets_TT: Tensor) -> tuple[Tensor, Tensor]:
    """Each task's gradient is turned towards every other's until their cosine is the usual one of the two.

    The usual cosines (`targets_TT`) are running means over the steps, updated at every step and not only where a
    gradient was turned: they may then rise as well as fall.
    """
    mixed_TT, targets_TT = torch.eye(len(gram_TT), dtype=gram_TT.dtype, device=gram_TT.device), targets_TT.clone()
    for meets in others.T:
        place, square_T, dot_T = _meet(gram_TT, mixed_TT, meets)
        own_T, other_T = ((mixed_TT @ gram_TT) * mixed_TT).sum(dim=1).clamp_min(0).sqrt(), square_T.sqrt()
        has_angle = (own_T > 0) & (other_T > 0)
        cosine_T = torch.where(has_angle, dot_T / (own_T * other_T), 0.0).clamp(-1, 1)
        target_T = targets_TT[place]
        sine_T, wanted_T = (1 - cosine_T.square()).sqrt(), (1 - target_T.square()).clamp_min(1e-12).sqrt()
        turn_T = own_T * (target_T * sine_T - cosine_T * wanted_T) / (other_T * wanted_T)
        mixed_TT[place] += torch.where(has_angle & (cosine_T < target_T), turn_T, 0.0)
        # A step that overflowed has no cosines.
        seen = has_angle & cosine_T.isfinite()
        targets_TT[place] = torch.where(seen, (1 - TARGET_RATE) * target_T + TARGET_RATE * cosine_T, target_T)
    return mixed_TT.sum(dim=0), targets_TT


def _meet(gram_TT: Tensor, mixed_TT: Tensor, meets: NDArray[np.int64]) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor]:
    """(places of each task and the one it meets, squared norms of those, inner products with them)."""
    index_T = torch.as_tensor(meets, device=gram_TT.device)
    place = torch.arange(len(gram_TT), device=gram_TT.device), index_T
    return place, gram_TT.diagonal()[index_T], (mixed_TT * gram_TT[index_T]).sum(dim=1)


METHODS: dict[str, Callable[[Tensor, OtherTasks, Tensor], tuple[Tensor, Tensor]]] = {
    "watch": watch,
    "pcgrad": pcgrad,
    "gradvac": gradvac,
}


class GradientSurgery:
    """One method over the steps of a run."""

    def __init__(self, kind: str, tasks: int, seed: int):
        self.method, self.tasks, self.seed = METHODS[kind], tasks, seed
        self.targets_TT = torch.zeros(tasks, tasks, dtype=torch.float64)
        self.cosines_TT: Tensor | None = None

    def weights(self, gram_TT: Tensor, step: int) -> Tensor:
        """(T,): what each task's gradient counts in the update of this step."""
        self.cosines_TT = cosines(gram_TT)
        targets_TT = self.targets_TT.to(gram_TT.device)
        weights_T, self.targets_TT = self.method(gram_TT, draw_others(self.tasks, self.seed, step), targets_TT)
        return weights_T

    def state_dict(self) -> dict[str, Any]:
        """Plain values. Waits for the device."""
        return {"targets": self.targets_TT.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            self.targets_TT = torch.tensor(state["targets"], dtype=torch.float64)
