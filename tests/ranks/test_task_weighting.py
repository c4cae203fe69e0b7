"""What a task's loss counts: each weighting's gradient against its formula, whatever the cut and the ranks."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from pal_dist.config.schema import RunConfig
from pal_dist.data.batch import pack_batch
from pal_dist.optim.task_weighting import LEARNED_VARIANCES
from pal_dist.training.setup import set_up
from pal_dist.training.trainer import Trainer
from tests.support.laws import loss_of
from tests.support.ranks import run_ranks
from tests.support.training import fit

Gradients = dict[str, np.ndarray]


def gradients(run: RunConfig, cache_dir: Path) -> tuple[Gradients, Gradients]:
    """The third step's gradient summed over ranks, and the same by the weighting's formula over whole batches."""
    trainer = Trainer(set_up(run, {}, cache_dir=cache_dir))
    engine, model = trainer.engine, trainer.engine.model
    if run.balance.weighting == LEARNED_VARIANCES:  # not at birth, where every variance is 1
        for parameter, value in zip(model.get_submodule(LEARNED_VARIANCES).parameters(), (0.5, -0.3, 0.2), strict=True):
            torch.nn.init.constant_(parameter, value)
    engine.step = lambda **_: (engine.backend.reduce(), torch.zeros(()))[1]  # type: ignore[method-assign,assignment]
    served = next(iter(trainer.run.schedule.steps(2, 3)))
    trainer.step(served)
    measured = {name: value.grad.numpy().copy() for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()
    total = torch.zeros(())
    for index, rows in served:
        task, corpus = trainer.run.tasks[index], list(trainer.run.corpora.train.values())[index]
        mean = loss_of(model, pack_batch([(task.name, corpus.rows(rows))])) / len(rows)
        if run.balance.weighting == "scale":
            labels = np.asarray(corpus.labels, dtype=np.float64)
            if task.objective.class_count:
                shares = np.unique(labels, return_counts=True)[1] / len(labels)
                mean = mean / float(-(shares * np.log(shares)).sum())
            else:
                mean = mean / float(((labels - labels.mean()) ** 2).mean() / 2.5**2)
        if run.balance.weighting == LEARNED_VARIANCES:
            logarithm = model.get_submodule(LEARNED_VARIANCES).logarithms[task.name].sum()
            mean = (1.0 if task.objective.class_count else 0.5) * torch.exp(-logarithm) * mean + logarithm / 2
        total = total + mean / len(served)
    total.backward()
    expected = {name: value.grad.numpy().copy() for name, value in model.named_parameters() if value.grad is not None}
    trainer.run.report.close()
    engine.close()
    return measured, expected


@pytest.mark.parametrize("weighting", ["equal", "scale", "uncertainty"])
def test_the_gradient_is_the_formula_s(weighting: str, tiny_run, cache_dir: Path, tmp_path: Path) -> None:
    """Proportional sampling, so that tasks have different numbers of examples in a step."""
    for ranks in (1, 2):
        run = tiny_run(
            weighting=weighting, sampling="proportional", tokens_per_micro_batch=64, output_dir=tmp_path / str(ranks)
        )
        for answer in run_ranks(gradients, run, cache_dir, ranks=ranks):
            assert not isinstance(answer, Exception), answer
            measured, expected = answer
            assert measured.keys() == expected.keys()
            norm = math.sqrt(sum(np.square(value).sum() for value in expected.values()))
            for name, value in expected.items():
                assert np.abs(measured[name] - value).max() < 1e-6 * norm, name


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["ddp", "zero2", "zero3", "fsdp2"])
def test_learned_variances_under_every_strategy(strategy: str, tiny_run, cache_dir: Path, tmp_path: Path) -> None:
    flags = {"weighting": "uncertainty", "max_steps": 6, "evaluate_every": "none", "tokens_per_micro_batch": 64}
    ((alone, _),) = run_ranks(fit, tiny_run(**flags, output_dir=tmp_path / "alone"), cache_dir, ranks=1)
    names = [name for name in alone if name.startswith(LEARNED_VARIANCES)]
    assert len(names) == 3
    assert all(np.abs(alone[name]).max() > 1e-4 for name in names)
    for answer in run_ranks(fit, tiny_run(**flags, strategy=strategy), cache_dir):
        assert not isinstance(answer, Exception), answer
        for name in names:
            np.testing.assert_allclose(answer[0][name], alone[name], atol=2e-6, err_msg=name)


def test_variances_resume_and_stay_out_of_the_saved_model(tiny_run, cache_dir: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    flags = {"weighting": "uncertainty", "max_steps": 6, "evaluate_every": "none"}
    ((clean, _),) = run_ranks(fit, tiny_run(**flags, output_dir=tmp_path / "clean"), cache_dir, ranks=1)
    run = tiny_run(**flags)
    run_ranks(fit, run, cache_dir, 3, ranks=1)
    ((resumed, _),) = run_ranks(fit, run, cache_dir, ranks=1)
    for name, value in clean.items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)
    saved = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert [name for name in saved if name.startswith(LEARNED_VARIANCES)] == []
