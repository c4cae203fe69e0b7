"""Which classes a model takes for which: counts of bounded size, whatever the number of classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_CLASSES = 30
"""Classes that are counted one by one, as many as a page shows. Of more, the counts of every pair would fill the memory
(a thousand classes have a million pairs), so all but the most confused ones are counted together."""

OTHERS = "others"


@dataclass(frozen=True)
class Confusion:
    """Counts [label, prediction] of a split."""

    names: tuple[str, ...]
    """Of the rows and columns: the classes' numbers, and OTHERS for those that are counted together."""
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, labels: NDArray[Any], predictions: NDArray[Any], classes: int) -> Confusion:
        """Of many classes those that are mistaken, or taken for another, the most often are counted one by one."""
        label, prediction = labels.astype(np.int64), predictions.astype(np.int64)
        shown = np.arange(classes)
        if classes > MOST_CLASSES:
            wrong = label != prediction
            mistakes = sum(np.bincount(side[wrong], minlength=classes) for side in (label, prediction))
            shown = np.sort(np.argsort(-np.asarray(mistakes), kind="stable")[: MOST_CLASSES - 1])
        places = np.full(classes, MOST_CLASSES - 1)
        places[shown] = np.arange(len(shown))
        names = [*map(str, shown), *([OTHERS] if len(shown) < classes else [])]
        counts = np.zeros((len(names), len(names)), dtype=np.int64)
        np.add.at(counts, (places[label], places[prediction]), 1)
        return cls(tuple(names), counts)

    def to_json(self) -> Any:
        """The counts alone where they are of all classes; else with the names of their rows and columns."""
        rows = self.counts.tolist()
        return {"classes": list(self.names), "counts": rows} if OTHERS in self.names else rows

    @classmethod
    def from_json(cls, value: Any) -> Confusion:
        """The inverse of `to_json`."""
        if isinstance(value, dict):
            return cls(tuple(value["classes"]), np.array(value["counts"]))
        return cls(tuple(map(str, range(len(value)))), np.array(value))
