"""What a task predicts: width of its output, its loss as a SUM, its prediction and its metrics.

Its metrics are functions of all predictions and all labels of a split (metrics.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pal_dist.core.errors import UserError
from pal_dist.tasks.metrics import Array, accuracy, f1, f1_macro, matthews, pearson, spearman

if TYPE_CHECKING:  # the table of tasks is shown without importing torch
    from torch import Tensor


@dataclass(frozen=True)
class Objective:
    """Base of the three objectives. `logits_BC` has `outputs` columns; labels are float32 numbers of shape (B,)."""

    @property
    def outputs(self) -> int:
        """Width C of the head's output."""
        return 1

    @property
    def class_count(self) -> int:
        """Number of different predictions; 0 where any number may come out."""
        return 0

    def format_prediction(self, value: float) -> str | int | float:
        """A prediction in the file's own words: a name, a whole number or a score."""
        return value

    def parse(self, text: str) -> float:
        """A label as written in a file -> its number. Raises ValueError with what was expected."""
        raise NotImplementedError

    def losses(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        """Each example's loss, (B,), in float32 or wider."""
        raise NotImplementedError

    def loss(self, logits_BC: Tensor, labels_B: Tensor, *, has_unlabelled: bool = False) -> Tensor:
        """Sum (not mean) of the examples' losses, a scalar in float32 or wider.

        Args:
            has_unlabelled: labels that are NaN stand for no example: they add nothing to the sum and its gradient.
        """
        if not has_unlabelled:
            return self.losses(logits_BC, labels_B).sum()
        losses_B = self.losses(logits_BC, labels_B.nan_to_num(0.0))
        return losses_B.where(labels_B.isnan().logical_not(), losses_B.new_zeros(())).sum()

    def constant_loss(self, labels: Array) -> float:
        """Mean loss of the best prediction that is the same for all examples: by default the labels' entropy."""
        _, counts = np.unique(labels, return_counts=True)
        shares = counts / counts.sum()
        return float(-(shares * np.log(shares)).sum())

    def predict(self, logits_BC: Array) -> Array:
        """Predictions in the labels' own units, shape (B,)."""
        raise NotImplementedError

    def metrics(self, predictions: Array, labels: Array) -> dict[str, float]:
        raise NotImplementedError

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Names that `metrics` returns, so that a wrong headline metric is found before training."""
        return tuple(self.metrics(np.array([0.0, 1.0]), np.array([0.0, 1.0])))

    def to_dict(self) -> dict[str, Any]:
        """The form in which an objective is written in a task yaml and in a saved model's config."""
        raise NotImplementedError


def _parse_class(text: str, names: tuple[str, ...], count: int) -> float:
    if names:
        if text not in names:
            raise ValueError(f"expected one of {', '.join(names)}, found {text!r}")
        return float(names.index(text))
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if value not in range(count):
        raise ValueError(f"expected a whole number from 0 to {count - 1}, found {text!r}")
    return value


def _format_class(value: float, names: tuple[str, ...]) -> str | int:
    return names[int(value)] if names else int(value)


@dataclass(frozen=True)
class Classes(Objective):
    """One of `count` classes: cross entropy. `names` are the labels as files write them; empty means 0..count-1."""

    count: int
    names: tuple[str, ...] = ()

    @property
    def outputs(self) -> int:
        return self.count

    @property
    def class_count(self) -> int:
        return self.count

    def format_prediction(self, value: float) -> str | int | float:
        return _format_class(value, self.names)

    def parse(self, text: str) -> float:
        return _parse_class(text, self.names, self.count)

    def losses(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        import torch.nn.functional as F

        return F.cross_entropy(logits_BC, labels_B.long(), reduction="none")

    def predict(self, logits_BC: Array) -> Array:
        return np.asarray(logits_BC.argmax(axis=1), dtype=np.float32)

    def metrics(self, predictions: Array, labels: Array) -> dict[str, float]:
        return {
            "accuracy": accuracy(predictions, labels),
            "f1_macro": f1_macro(predictions, labels),
            "matthews": matthews(predictions, labels),
        }

    def to_dict(self) -> dict[str, Any]:
        return {"classes": list(self.names) or self.count}


@dataclass(frozen=True)
class Binary(Objective):
    """Yes or no from one logit: binary cross entropy. `names` are (no, yes) as files write them; empty means 0, 1."""

    names: tuple[str, ...] = ()

    @property
    def class_count(self) -> int:
        return 2

    def format_prediction(self, value: float) -> str | int | float:
        return _format_class(value, self.names)

    def parse(self, text: str) -> float:
        return _parse_class(text, self.names, 2)

    def losses(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        import torch.nn.functional as F

        return F.binary_cross_entropy_with_logits(logits_BC[:, 0], labels_B.to(logits_BC.dtype), reduction="none")

    def predict(self, logits_BC: Array) -> Array:
        return np.asarray(logits_BC[:, 0] > 0, dtype=np.float32)

    def metrics(self, predictions: Array, labels: Array) -> dict[str, float]:
        return {
            "accuracy": accuracy(predictions, labels),
            "f1": f1(predictions, labels),
            "matthews": matthews(predictions, labels),
        }

    def to_dict(self) -> dict[str, Any]:
        return {"binary": list(self.names)}


@dataclass(frozen=True)
class Score(Objective):
    """A number between `low` and `high`: squared error.

    The head's output is the distance from the middle in half ranges, so that a new head starts at the middle and the
    loss has the size of the other objectives'. (Raw 0..5 units would let the score task outweigh the others by 6.25.)
    """

    low: float
    high: float

    @property
    def _middle(self) -> float:
        return (self.low + self.high) / 2

    @property
    def _half(self) -> float:
        return (self.high - self.low) / 2

    def parse(self, text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not self.low <= value <= self.high:
            raise ValueError(f"expected a number from {self.low:g} to {self.high:g}, found {text!r}")
        return value

    def losses(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        import torch.nn.functional as F

        target_B = (labels_B.to(logits_BC.dtype) - self._middle) / self._half
        return F.mse_loss(logits_BC[:, 0], target_B, reduction="none")

    def constant_loss(self, labels: Array) -> float:
        return float(labels.astype(np.float64).var() / self._half**2)

    def predict(self, logits_BC: Array) -> Array:
        return np.asarray(np.clip(self._middle + self._half * logits_BC[:, 0], self.low, self.high), dtype=np.float32)

    def metrics(self, predictions: Array, labels: Array) -> dict[str, float]:
        return {"pearson": pearson(predictions, labels), "spearman": spearman(predictions, labels)}

    def to_dict(self) -> dict[str, Any]:
        return {"score": [self.low, self.high]}


def read_objective(value: Any, *, where: str) -> Objective:
    """Read `binary`, `{binary: [no, yes]}`, `{classes: 5}`, `{classes: [a, b]}` or `{score: [low, high]}`.

    Raises UserError, naming `where`, for anything else.
    """
    kind, detail = next(iter(value.items())) if isinstance(value, Mapping) and len(value) == 1 else (value, None)
    if kind == "binary" and (not detail or len(detail) == 2):
        return Binary(tuple(map(str, detail or ())))
    if kind == "classes" and isinstance(detail, int) and detail > 1:
        return Classes(detail)
    if kind == "classes" and isinstance(detail, list) and len(detail) > 1:
        return Classes(len(detail), tuple(map(str, detail)))
    if kind == "score" and isinstance(detail, list) and len(detail) == 2 and float(detail[0]) < float(detail[1]):
        return Score(float(detail[0]), float(detail[1]))
    raise UserError(
        f"{where}: `objective` must be `binary`, `classes: N`, `classes: [name, ...]` or `score: [low, high]`, "
        f"found {value!r}"
    )
