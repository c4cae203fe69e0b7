"""Who is taken for whom: whole for few classes, of bounded size for many."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
from sklearn.metrics import confusion_matrix

from pal_dist.tasks.confusion import MOST_CLASSES, OTHERS, Confusion


def test_few_classes_are_those_of_scikit_learn() -> None:
    labels, predictions = np.random.default_rng(0).integers(0, 5, (2, 200)).astype(np.float32)
    confusion = Confusion.of(labels, predictions, 5)
    np.testing.assert_array_equal(confusion.counts, confusion_matrix(labels, predictions))
    assert confusion.to_json() == confusion.counts.tolist(), "as runs of before have it"
    assert Confusion.from_json(confusion.to_json()).names == confusion.names


def test_of_many_classes_the_most_confused_stand_alone() -> None:
    labels = np.arange(100_000) % 50_000
    predictions = labels.copy()
    predictions[labels == 777] = 4242
    tracemalloc.start()
    confusion = Confusion.of(labels.astype(np.float32), predictions.astype(np.float32), 50_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 26, "the pairs of all classes would be 19 GiB"
    assert confusion.counts.shape == (MOST_CLASSES, MOST_CLASSES)
    assert confusion.counts.sum() == 100_000, "nothing is dropped"
    assert confusion.counts[confusion.names.index("777"), confusion.names.index("4242")] == 2
    assert confusion.names[-1] == OTHERS
    again = Confusion.from_json(json.loads(json.dumps(confusion.to_json())))
    assert again.names == confusion.names
    np.testing.assert_array_equal(again.counts, confusion.counts)
