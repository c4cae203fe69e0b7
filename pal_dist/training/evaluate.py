"""Whole-split predictions, gathered once; metrics of all predictions and all labels, never averaged over batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pal_dist.core.errors import DoesNotFitError
from pal_dist.data.batch import Batch, pack_batch
from pal_dist.data.batching import Rows, evaluation_batches
from pal_dist.data.token_cache import Corpus
from pal_dist.distributed.engine import Engine
from pal_dist.tasks.registry import Task
from pal_dist.training.oom_guard import is_out_of_memory


@dataclass(frozen=True)
class Predictions:
    """A split's logits (examples, C), in the order of the file, on every rank."""

    task: Task
    corpus: Corpus
    logits: NDArray[np.float32]

    @property
    def values(self) -> NDArray[Any]:
        return self.task.objective.predict(self.logits)

    def metrics(self) -> dict[str, float]:
        return self.task.objective.metrics(self.values, np.asarray(self.corpus.labels))

    def confusion(self) -> NDArray[np.int64] | None:
        """Counts [label, prediction]; None where the task predicts a score."""
        classes = self.task.objective.class_count
        if not classes:
            return None
        counts = np.zeros((classes, classes), dtype=np.int64)
        pairs = np.stack([self.corpus.labels, self.values])
        np.add.at(counts, tuple(pairs.astype(int)), 1)
        return counts


def predict(engine: Engine, task: Task, corpus: Corpus, *, budget: int) -> Predictions:
    """The model's logits of a whole split."""
    engine.model.eval()
    logits = run_rows(
        engine,
        lambda batch: engine.forward(batch)[0],
        task,
        corpus,
        range(len(corpus)),
        outputs=task.objective.outputs,
        budget=budget,
        gathers=engine.strategy.shares_parameters,
    )
    return Predictions(task, corpus, logits)


@torch.no_grad()
def run_rows(
    engine: Engine,
    function: Callable[[Batch], Tensor],
    task: Task,
    corpus: Corpus,
    rows: range,
    *,
    outputs: int,
    budget: int,
    gathers: bool = False,
    doing: str = "evaluating",
    dtype: str = "float32",
) -> NDArray[Any]:
    """The function's results for a stretch of a split, (rows, outputs), on every rank; each runs a share of it.

    They leave the device batch by batch, so they never pile up there; a batch that runs out of memory is run again in
    halves, which no other rank needs to know.

    Args:
        function: (R, outputs) of a batch of the task's rows on the engine's device.
        rows: a stretch without gaps.
        budget: tokens of a batch.
        gathers: the function gathers parameters from the other ranks.
        doing: what is being done, in words.

    Raises DoesNotFitError where one example alone runs out of memory.
    """
    waiting = evaluation_batches(
        corpus.lengths[rows.start : rows.stop],
        budget=budget,
        rank=engine.rank,
        ranks=engine.ranks,
    )[::-1]
    if gathers:  # in every batch: the same number of them on every rank
        most = max(engine.gather(len(waiting)))
        waiting = [*[np.zeros(1, dtype=np.int64)] * (most - len(waiting)), *waiting]
    outputs_of_parts: list[tuple[Rows, NDArray[Any]]] = []
    while waiting:
        engine.group.report_progress(f"{doing} {task.name}")
        part, failure = waiting.pop(), ""
        try:
            batch = pack_batch([(task.name, corpus.rows(part + rows.start))])
            outputs_of_parts.append((part, function(engine.to_device(batch)).cpu().numpy()))
        except Exception as error:
            if not is_out_of_memory(error) or (gathers and engine.ranks > 1):
                raise
            failure = str(error)
        if failure:  # outside of `except`, whose traceback holds the batch
            if len(part) == 1:
                raise DoesNotFitError(f"{doing} {task.name}: one example alone runs out of memory ({failure[:80]})")
            engine.empty_cache()
            waiting += np.array_split(part, 2)[::-1]
    results = np.empty((len(rows), outputs), dtype=dtype)
    for share in engine.gather(outputs_of_parts):
        for part, values in share:
            results[part] = values
    return results


def course_lines(predictions: Predictions) -> list[str]:
    """A prediction file in the course's own format, spaces included."""
    pairs = enumerate(predictions.values.tolist())
    whole = predictions.task.objective.outputs > 1  # classes are written as 3, yes or no as 1.0, scores as 2.71
    lines = [f"{predictions.corpus.id(row)} , {int(value) if whole else value} " for row, value in pairs]
    return [f"id \t {predictions.task.prediction_title} ", *lines]


def json_records(predictions: Predictions) -> list[dict[str, Any]]:
    """One record a row, in the order of the file; labels in the file's own words, where it has words."""
    format_prediction = predictions.task.objective.format_prediction
    rows = enumerate(zip(predictions.values.tolist(), predictions.logits.tolist(), strict=True))
    return [
        {"id": predictions.corpus.id(row), "prediction": format_prediction(value), "logits": logits}
        for row, (value, logits) in rows
    ]
