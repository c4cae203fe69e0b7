"""What a task's loss counts: units, factors, labels that say nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pal_dist.core.errors import UserError
from pal_dist.optim.task_weighting import LearnedVariances, task_weights_of
from pal_dist.tasks.objectives import Binary, Classes, Score
from pal_dist.tasks.registry import resolve_tasks


def test_constant_predictions() -> None:
    """Against the loss itself, at the constant that is best."""
    labels = np.array([0, 0, 0, 1, 4], dtype=np.float32)
    logits = torch.log(torch.tensor([0.6, 0.2, 1e-30, 1e-30, 0.2])).expand(5, 5)
    classes = Classes(5)
    assert classes.constant_loss(labels) == pytest.approx(float(classes.loss(logits, torch.from_numpy(labels))) / 5)
    yes = np.array([1, 1, 1, 0], dtype=np.float32)
    logit = torch.full((4, 1), math.log(3))
    assert Binary().constant_loss(yes) == pytest.approx(float(Binary().loss(logit, torch.from_numpy(yes))) / 4)
    score = Score(0, 5)
    mean = torch.full((5, 1), (float(labels.mean()) - 2.5) / 2.5)
    assert score.constant_loss(labels) == pytest.approx(float(score.loss(mean, torch.from_numpy(labels))) / 5)


def test_labels_that_are_all_the_same() -> None:
    (task,) = resolve_tasks(["sst"])
    with pytest.raises(UserError, match="every training label of `sst` is the same"):
        task_weights_of("scale", [task], [np.ones(7, dtype=np.float32)])
    assert task_weights_of("equal", [task], [np.ones(7, dtype=np.float32)]).factors({0: 4}) == {0: 1.0}


def test_factors_add_up_to_the_step() -> None:
    """By examples nothing changes; alike, the factors' mean over examples is 1."""
    tasks = resolve_tasks(["sst", "sts"])
    labels = [np.array([0, 1], dtype=np.float32)] * 2
    assert task_weights_of("examples", tasks, labels).factors({0: 3, 1: 9}) == {0: 1.0, 1: 1.0}
    alike = task_weights_of("equal", tasks, labels).factors({0: 3, 1: 9})
    assert alike == {0: 2.0, 1: pytest.approx(2 / 3)}
    assert LearnedVariances(tasks).shares == {"sst": 1.0, "sts": 0.5}
