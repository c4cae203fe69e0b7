"""What a task predicts: width of its output, its loss as a SUM, its prediction and its metrics.

Its metrics are functions of all predictions and all labels of a split (metrics.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pal_dist.core.console import listed, quoted
from pal_dist.core.documents import brief
from pal_dist.core.errors import UserError
from pal_dist.core.shapes import mismatches
from pal_dist.tasks.metrics import Array, accuracy, f1, f1_macro, matthews, pearson, spearman

if TYPE_CHECKING:  # the table of tasks is shown without importing torch
    from torch import Tensor

MOST_CLASSES = 1 << 24
"""Labels are float32, which tells so many whole numbers apart."""

MOST_SCORE = 1e18
"""Labels are float32, and their squares must be finite too."""


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


TRUTHS = {"false": 0.0, "true": 1.0}
"""How JSON and, with a capital, Python write yes and no: labels of a binary task that names none of its own."""


def _parse_class(text: str, names: tuple[str, ...], count: int) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if names:
        # Where one is missing, pandas writes a column of whole numbers with `.0`.
        name = text if text in names or not value.is_integer() else str(int(value))
        if text in TRUTHS and text not in names and text.capitalize() in names:
            name = text.capitalize()  # a yaml's `[false, true]` are these names
        if name not in names:
            raise ValueError(f"expected one of {listed(names)}, found {quoted(text)}")
        return float(names.index(name))
    if value not in range(count):
        hint = " (labels true and false are those of `objective: binary`)" if text.lower() in TRUTHS else ""
        raise ValueError(f"expected a whole number from 0 to {count - 1}, found {quoted(text)}{hint}")
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
        if not self.names and text.lower() in TRUTHS:
            return TRUTHS[text.lower()]
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
            raise ValueError(f"expected a number from {self.low:g} to {self.high:g}, found {quoted(text)}")
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
    if kind == "binary" and (detail is None or detail == [] or (isinstance(detail, list) and len(detail) == 2)):
        return Binary(_class_names(detail or [], where))
    if kind == "classes" and isinstance(detail, int) and 1 < detail <= MOST_CLASSES:
        return Classes(detail)
    if kind == "classes" and isinstance(detail, list) and len(detail) > 1:
        return Classes(len(detail), _class_names(detail, where))
    if kind == "score":
        return _read_score(detail, where)
    raise UserError(
        f"{where}: `objective` must be `binary`, `classes: N`, `classes: [name, ...]` or `score: [low, high]`, "
        f"found {brief(value)}"
    )


def _class_names(values: Sequence[Any], where: str) -> tuple[str, ...]:
    """Raises UserError for what is no name, and for one that stands twice."""
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
            raise UserError(
                f"{where}: {brief(value)} is no name of a class; write each name as the file does, in quotes"
            )
    names = tuple(map(str, values))
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{where}: the class name `{brief(name)[1:-1]}` stands twice; each class has its own")
    return names


def _read_score(detail: Any, where: str) -> Score:
    """Raises UserError for anything but two numbers, the lower first, that are finite and differ as labels are kept."""
    if isinstance(detail, list) and len(detail) == 2 and not list(mismatches(detail, Sequence[float])):
        low, high = map(float, detail)
        if max(-low, high) <= MOST_SCORE and np.float32(low) < np.float32(high):
            return Score(low, high)
    raise UserError(
        f"{where}: `objective` must be `score: [low, high]`, two finite numbers (within ±{MOST_SCORE:g}), the lower "
        f"first; found {brief(detail)}"
    )
