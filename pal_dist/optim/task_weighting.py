"""What each task's loss counts in a step: a factor of its sum, whatever the cut into micro-batches and ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pal_dist.core.errors import UserError
from pal_dist.tasks.registry import Task

LEARNED_VARIANCES = "uncertainty"
"""Name of the learned variances' module in the model."""


class LearnedVariances(nn.Module):
    """exp(-s) L + s / 2 for each task, s being the logarithm of a variance that is learned; born s = 0.

    L is the task's mean loss, halved for scores, whose squared error is that of a normal distribution (Kendall, Gal and
    Cipolla 2018, equations 7 and 10).
    """

    def __init__(self, tasks: Sequence[Task]):
        super().__init__()
        self.logarithms = nn.ParameterDict({task.name: nn.Parameter(torch.zeros(1)) for task in tasks})
        self.shares = {task.name: 1.0 if task.objective.class_count else 0.5 for task in tasks}

    def forward(self, task: str, loss_sum: Tensor, examples: Tensor) -> Tensor:
        """The sum over so many `examples` (a scalar on the loss's device) of the above, a scalar."""
        logarithm = self.logarithms[task].sum()
        return self.shares[task] * loss_sum * torch.exp(-logarithm) + examples.to(logarithm.dtype) * logarithm / 2


@dataclass(frozen=True)
class TaskWeights:
    """Factors of the tasks' summed losses."""

    by_examples: bool
    units: tuple[float, ...]
    """What one unit of each task's mean loss is."""

    def factors(self, counts: Mapping[int, int]) -> dict[int, float]:
        """For each task of a step that serves so many examples of it. The step divides by the examples of all."""
        if self.by_examples:
            return dict.fromkeys(counts, 1.0)
        total = sum(counts.values())
        return {task: total / (len(counts) * count * self.units[task]) for task, count in counts.items()}


def task_weights_of(weighting: str, tasks: Sequence[Task], labels: Sequence[NDArray[np.float32]]) -> TaskWeights:
    """The balance of a run on these training labels. Raises UserError for labels that are all the same."""
    if weighting != "scale":
        return TaskWeights(weighting == "examples", (1.0,) * len(tasks))
    units = [
        task.objective.constant_loss(np.asarray(task_labels)) for task, task_labels in zip(tasks, labels, strict=True)
    ]
    for task, unit in zip(tasks, units, strict=True):
        if not unit > 0:
            raise UserError(f"--weighting scale: every training label of `{task.name}` is the same; leave the task out")
    return TaskWeights(False, tuple(units))
