"""Predictions of a whole split: in its order, each row once, in halves where memory is short, as files have them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pal_dist.core.errors import DoesNotFitError
from pal_dist.data.batch import Batch
from pal_dist.data.token_cache import Corpus
from pal_dist.tasks.registry import TASKS
from pal_dist.training.evaluate import Predictions, course_lines, json_records, run_rows
from tests.support.tiny_run import sst_corpus


@pytest.fixture(scope="module")
def corpus(tiny_bert: Path, small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return sst_corpus(small_data / "ids-sst-train.csv", tiny_bert, tmp_path_factory.mktemp("cache"))


def engine_of_one() -> Any:
    return SimpleNamespace(
        rank=0,
        ranks=1,
        group=SimpleNamespace(report_progress=lambda _: None),
        to_device=lambda batch: batch,
        gather=lambda item: [item],
        empty_cache=lambda: None,
    )


def sum_of_ids(batch: Batch) -> torch.Tensor:
    """Of each row."""
    return torch.stack([ids.sum() for ids in batch.input_ids_T.split(batch.lengths.tolist())])[:, None].float()


def run(corpus: Corpus, function: Any, rows: range, budget: int) -> list[float]:
    results = run_rows(engine_of_one(), function, TASKS["sst"], corpus, rows, outputs=1, budget=budget)
    return [float(value) for value in results[:, 0]]


@pytest.mark.parametrize("budget", [1, 90, 10**6])
@pytest.mark.parametrize("rows", [range(43), range(7, 12), range(40, 43)])
def test_every_row_has_its_own_result(rows: range, budget: int, corpus: Corpus) -> None:
    expected = [corpus.tokens[corpus.starts[row] : corpus.starts[row + 1]].sum() for row in rows]
    assert run(corpus, sum_of_ids, rows, budget) == expected


def test_out_of_memory_is_met_by_halves(corpus: Corpus) -> None:
    sizes: list[int] = []

    def short_of_memory(batch: Batch) -> torch.Tensor:
        sizes.append(len(batch.labels_R))
        if sizes[-1] > 6:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return sum_of_ids(batch)

    assert run(corpus, short_of_memory, range(43), 10**6) == run(corpus, sum_of_ids, range(43), 10**6)
    assert sizes[:4] == [43, 22, 11, 6]


def test_one_example_that_does_not_fit_ends_it(corpus: Corpus) -> None:
    def no_memory(batch: Batch) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(DoesNotFitError, match="evaluating sst: one example alone runs out of memory"):
        run(corpus, no_memory, range(43), 10**6)


def predictions_of(name: str, logits: list[list[float]], labels: list[float]) -> Predictions:
    corpus: Any = SimpleNamespace(labels=np.array(labels, dtype=np.float32), id=lambda row: f"row{row}")
    return Predictions(TASKS[name], corpus, np.array(logits, dtype=np.float32))


def test_confusion_counts_label_by_prediction() -> None:
    logits = [[0, 1, 0, 0, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 1]]
    counts = predictions_of("sst", logits, [1, 4, 2]).confusion()
    assert counts is not None
    assert np.argwhere(counts).tolist() == [[1, 1], [2, 4], [4, 4]]
    assert predictions_of("sts", [[0.0]], [2.5]).confusion() is None


def test_files_of_predictions() -> None:
    """The course's own format, to its spaces, and a record a row with labels in the file's own words."""
    predictions = predictions_of("sst", [[0, 1, 0, 0, 0], [0, 0, 0, 0, 1]], [1, 4])
    assert course_lines(predictions) == ["id \t Predicted_Sentiment ", "row0 , 1 ", "row1 , 4 "]
    assert course_lines(predictions_of("para", [[1.0]], [1]))[1] == "row0 , 1.0 "
    assert course_lines(predictions_of("sts", [[0.5]], [1]))[1] == "row0 , 3.75 "
    (record,) = json_records(predictions_of("rte", [[-1.0]], [1]))
    assert record == {"id": "row0", "prediction": "not_entailment", "logits": [-1.0]}
