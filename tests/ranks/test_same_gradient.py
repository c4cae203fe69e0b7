"""Law 1: any cut into micro-batches, on any number of ranks, gives what one process with one big batch gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pal_dist.config.schema import RunConfig
from pal_dist.training.setup import set_up
from pal_dist.training.trainer import Trainer
from tests.support.ranks import run_ranks
from tests.support.training import Parameters, assert_same, plain_reference, train_in_float64

CASES = {
    "task-complete": {},
    "annealed, task-complete": {"sampling": "annealed", "epochs": 3},
    "random, one task a step": {"sampling": "random", "step_tasks": "one"},
    "batches smaller than the ranks": {"batch_size": 1},
    "frozen encoder": {"mode": "pretrain"},
    "no adapter, mean pooling": {"adapter": "none", "pooling": "mean"},
    "every layer checkpointed": {"checkpoint_layers": 1},
    "every other layer checkpointed": {"checkpoint_layers": 2, "mode": "pretrain"},
}


@pytest.mark.parametrize("case", CASES)
def test_same_gradient(case: str, tiny_run, cache_dir: Path, tmp_path: Path) -> None:
    # Nine steps: the pass over sts (29 examples, 8 a step) ends with a step of 5, so a partial step is among them.
    flags = {"max_steps": 9, "max_gradient_norm": 0.5, **CASES[case]}
    reference = plain_reference(tiny_run(**flags), cache_dir)
    served: list[dict[str, Any]] = []
    for number, (ranks, budget) in enumerate([(1, 4096), (1, 64), (2, 4096), (2, 64)]):
        run = tiny_run(**flags, tokens_per_micro_batch=budget, output_dir=tmp_path / str(number))
        answers = run_ranks(train_in_float64, run, cache_dir, ranks=ranks)
        for answer in answers:
            assert not isinstance(answer, Exception), answer
            assert_same(answer[0], reference)
            served.append(answer[1])
    assert all(one["examples"] == served[0]["examples"] for one in served)
    assert all(one["useful_tokens"] == served[0]["useful_tokens"] for one in served)
    for one in served:  # law 6 across ranks: the same model, the same metrics
        for task, metrics in served[0]["metrics"].items():
            assert one["metrics"][task] == pytest.approx(metrics, abs=1e-9, nan_ok=True)


def first_gradient(run: RunConfig, cache_dir: Path) -> Parameters:
    """The gradient of the first step in float32, summed over the ranks, before clipping and the update."""
    trainer = Trainer(set_up(run, {}, cache_dir=cache_dir))
    engine = trainer.engine
    engine.step = lambda **_: (engine.backend.reduce(), torch.zeros(()))[1]  # type: ignore[method-assign,assignment]
    trainer.step(next(trainer.run.schedule.steps(0, 1)))
    trainer.run.report.close()
    engine.close()
    return {name: value.grad.numpy() for name, value in engine.model.named_parameters() if value.grad is not None}


def test_same_gradient_in_float32(tiny_run, cache_dir: Path, tmp_path: Path) -> None:
    """Relative to the whole gradient, 1e-6: the order of sums is all that differs."""
    gradients = []
    for number, (ranks, budget) in enumerate([(1, 4096), (1, 64), (2, 4096), (2, 64)]):
        run = tiny_run(tokens_per_micro_batch=budget, output_dir=tmp_path / str(number))
        gradients += run_ranks(first_gradient, run, cache_dir, ranks=ranks)
    norm = np.sqrt(sum(np.square(value).sum() for value in gradients[0].values()))
    for other in gradients[1:]:
        assert other.keys() == gradients[0].keys()
        distance = np.sqrt(sum(np.square(other[name] - value).sum() for name, value in gradients[0].items()))
        assert distance / norm < 1e-6


def test_the_law_can_fail(tiny_run, cache_dir: Path) -> None:
    run = tiny_run()
    assert_same(plain_reference(run, cache_dir), plain_reference(run, cache_dir))
    with pytest.raises(AssertionError):
        assert_same(plain_reference(run, cache_dir), plain_reference(tiny_run(batch_size=9), cache_dir))
