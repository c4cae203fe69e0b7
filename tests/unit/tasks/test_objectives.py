"""Losses against PyTorch, labels against what files hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pal_dist.core.errors import UserError
from pal_dist.tasks import objectives
from pal_dist.tasks.objectives import Binary, Classes, Score, read_objective


def test_losses_are_sums() -> None:
    logits, labels = torch.randn(7, 3), torch.tensor([0.0, 1, 2, 0, 1, 2, 0])
    expected = sum(F.cross_entropy(logits[i : i + 1], labels[i : i + 1].long()) for i in range(7))
    torch.testing.assert_close(Classes(3).loss(logits, labels), expected)
    one, yes = torch.randn(7, 1), (labels > 0).float()
    expected = -(yes * one[:, 0].sigmoid().log() + (1 - yes) * (1 - one[:, 0].sigmoid()).log()).sum()
    torch.testing.assert_close(Binary().loss(one, yes), expected)
    score = Score(0, 5)
    expected = ((torch.from_numpy(2.5 + 2.5 * one[:, 0].numpy()) - labels).square() / 2.5**2).sum()
    torch.testing.assert_close(score.loss(one, labels), expected)


def test_score_is_predicted_in_its_own_units() -> None:
    np.testing.assert_allclose(Score(0, 5).predict(np.array([[-1.0], [0.0], [0.5], [9.0]])), [0, 2.5, 3.75, 5])


@pytest.mark.parametrize(
    ("objective", "text", "value"),
    [
        (Classes(5), "4", 4),
        (Binary(), "1.0", 1),
        (Score(0, 5), "3.8", 3.8),
        (Classes(3, ("a", "b", "c")), "c", 2),
        (Binary(("no", "yes")), "yes", 1),
    ],
)
def test_labels_are_read(objective: objectives.Objective, text: str, value: float) -> None:
    assert objective.parse(text) == pytest.approx(value)


@pytest.mark.parametrize(
    ("objective", "text"),
    [
        (Classes(5), "5"),
        (Classes(5), "1.5"),
        (Classes(5), "x"),
        (Binary(), "2"),
        (Score(0, 5), "5.1"),
        (Score(0, 5), "nan"),
        (Binary(("no", "yes")), "1"),
    ],
)
def test_wrong_labels_are_refused(objective: objectives.Objective, text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        objective.parse(text)


@pytest.mark.parametrize("objective", [Classes(3), Classes(2, ("a", "b")), Binary(), Binary(("n", "y")), Score(1, 4)])
def test_objectives_survive_being_written(objective: objectives.Objective) -> None:
    assert read_objective(objective.to_dict(), where="here") == objective


@pytest.mark.parametrize(
    "value", ["classes", {"classes": 1}, {"score": [5, 0]}, {"score": 3}, 7, {}, {"binary": ["a"]}]
)
def test_no_objective(value: object) -> None:
    with pytest.raises(UserError, match="here: `objective` must be"):
        read_objective(value, where="here")
