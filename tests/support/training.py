"""Training as tests do it: to the end, in float64, until it is killed; and the same written as plainly as can be."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import torch

import pal_dist.training.checkpoint
import pal_dist.training.dev_metrics
from pal_dist.commands.train import train
from pal_dist.config.schema import RunConfig
from pal_dist.data.batch import pack_batch
from pal_dist.data.token_cache import Corpus, load_corpus
from pal_dist.data.tokenizer import load_tokenizer
from pal_dist.models.multi_task import build_model
from pal_dist.optim.optimizers import learning_rate_factor, parameter_groups
from pal_dist.tasks.registry import resolve_tasks
from pal_dist.training.setup import plan_steps, set_up
from pal_dist.training.trainer import Trainer
from tests.support.laws import loss_of

SHARED_OUT = ["zero1", "zero2", "zero3", "zero2_offload", "zero3_offload", "fsdp2"]


Parameters = dict[str, np.ndarray]


def train_in_float64(run: RunConfig, cache_dir: Path) -> tuple[Parameters, dict[str, Any]]:
    """What `pal-dist train` does, with a model in float64."""
    trainer = Trainer(set_up(run, {}, cache_dir=cache_dir))
    trainer.engine.model.double()
    trainer.engine.backend.buffer = trainer.engine.backend.buffer.double()
    if trainer.engine.task_gradients is not None:
        trainer.engine.separate_task_gradients(len(trainer.run.tasks))
    state = trainer.fit()
    trainer.run.report.close()
    trainer.engine.close()
    values = {name: value.detach().numpy() for name, value in trainer.engine.model.named_parameters()}
    return values, {"examples": state.examples, "useful_tokens": state.useful_tokens, "metrics": state.best_metrics}


def corpora_of(run: RunConfig, cache_dir: Path) -> list[Corpus]:
    """The run's training corpora, in the order of its tasks."""
    return [
        load_corpus(
            task,
            "train",
            data_dir=Path(run.data.data_dir),
            cache_dir=cache_dir,
            max_characters=20_000,
            tokenizer=load_tokenizer(Path(run.model.model)),
            max_length=run.data.max_length,
            bad_rows="stop",
        )
        for task in resolve_tasks(run.data.tasks)
    ]


def plain_reference(run: RunConfig, cache_dir: Path) -> Parameters:
    """The same training written as plainly as can be: one batch a task, torch's own AdamW and clipping."""
    tasks = resolve_tasks(run.data.tasks)
    folder = Path(run.model.model)
    corpora = corpora_of(run, cache_dir)
    torch.manual_seed(run.train.seed)
    model = build_model(folder, tasks, run.model).double().train()
    if run.train.mode == "pretrain":
        model.freeze_encoder()
    optimizer = torch.optim.AdamW(parameter_groups(model, run.optimizer.weight_decay), fused=False)
    schedule, total = plan_steps(run, corpora)
    for step, served in enumerate(schedule.steps(0, total)):
        count = sum(len(rows) for _, rows in served)
        losses = []
        for adapter in model.adapters.values():
            adapter.set_progress(step / total)
        for index, rows in served:
            losses.append(loss_of(model, pack_batch([(tasks[index].name, corpora[index].rows(rows))])))
        (torch.stack(losses).sum() / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), run.optimizer.max_gradient_norm)
        for group in optimizer.param_groups:
            group["lr"] = run.optimizer.learning_rate * learning_rate_factor(step, total, run.optimizer.warmup)
        optimizer.step()
        optimizer.zero_grad()
    return {name: value.detach().numpy() for name, value in model.named_parameters()}


def assert_same(found: Parameters, expected: Parameters, tolerance: float = 1e-12) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        # Softmax does not see a key's bias: its gradient is rounding noise, which Adam enlarges.
        bound = 1e3 * tolerance if "key.bias" in name else tolerance
        np.testing.assert_allclose(found[name], value, rtol=0, atol=bound * max(1, np.abs(value).max()), err_msg=name)


def fit_quietly(run: RunConfig, cache_dir: Path) -> tuple[Parameters, dict[str, Any]]:
    trainer = Trainer(set_up(run, {}, cache_dir=cache_dir))
    state = trainer.fit()
    values = {name: value.detach().float().numpy().copy() for name, value in trainer.engine.full_state_dict().items()}
    trainer.run.report.close()
    trainer.engine.close()
    return values, state.best_metrics


def distances(found: Parameters, expected: Parameters) -> tuple[float, float]:
    """(of all parameters together, of the worst one), each relative to its size.

    Key biases are left out: softmax does not see them, so their gradient is noise that Adam enlarges.
    """
    names = [name for name in expected if "key.bias" not in name]
    off = {name: np.linalg.norm((found[name] - expected[name]).astype(np.float64)) for name in names}
    size = {name: np.linalg.norm(expected[name].astype(np.float64)) for name in names}
    whole = np.linalg.norm(list(off.values())) / np.linalg.norm(list(size.values()))
    return float(whole), max(off[name] / (size[name] or 1.0) for name in names)


def fit(run: RunConfig, cache_dir: Path, stop_at: int | None = None) -> tuple[Parameters, dict[str, Any]]:
    """Train to the end, or ask to be stopped before the step after `stop_at`."""
    trainer = Trainer(set_up(run, {}, cache_dir=cache_dir))
    step = trainer.step

    def watched(served: Any) -> Any:
        if trainer.state.step + 1 == stop_at and trainer.engine.rank == trainer.engine.ranks - 1:
            os.kill(os.getpid(), signal.SIGTERM)  # to one rank alone: the others are told
        return step(served)

    trainer.step = watched  # type: ignore[method-assign]
    with trainer.preemption:
        state = trainer.fit()
    values = {name: value.detach().float().numpy().copy() for name, value in trainer.engine.full_state_dict().items()}
    trainer.run.report.close()
    trainer.engine.close()
    return values, {"metrics": state.best_metrics, "examples": state.examples, "step": state.step}


def train_and_read(run: RunConfig, cache_dir: Path, stop_after: int | None = None) -> Parameters | None:
    """Train; `stop_after`: die without a word after that many steps. Returns the final parameters."""
    if stop_after is not None:
        step = Trainer.step

        def dying(self: Trainer, served: Any) -> torch.Tensor:
            if self.state.step == stop_after:
                raise KeyboardInterrupt
            return step(self, served)

        Trainer.step = dying  # type: ignore[method-assign]
        try:
            train(run, {}, cache_dir=cache_dir)
        except KeyboardInterrupt:
            return None
    trainer = Trainer(set_up(run, {}, cache_dir=cache_dir))
    trainer.fit()
    trainer.run.report.close()
    trainer.engine.close()
    return {name: value.detach().numpy() for name, value in trainer.engine.model.named_parameters()}


def die(*_: Any, **__: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def fit_until_killed(run: RunConfig, cache_dir: Path, place: str, step: int) -> Any:
    """Every rank kills itself, as a batch system would, at a place of a step."""
    honest_step, honest_predict, honest_save = (
        Trainer.step,
        pal_dist.training.dev_metrics.predict,
        pal_dist.training.checkpoint.save_file,
    )
    reached: list[int] = [0]

    def watched(self: Trainer, served: Any) -> Any:
        reached[0] = self.state.step
        if place == "step" and self.state.step == step:
            return die()
        return honest_step(self, served)

    def half_a_file(tensors: Any, path: Path) -> None:
        honest_save(tensors, path)
        if place == "save" and reached[0] >= step:
            os.truncate(path, path.stat().st_size // 2)
            die()

    Trainer.step = watched  # type: ignore[method-assign]
    pal_dist.training.checkpoint.save_file = half_a_file  # type: ignore[assignment]
    pal_dist.training.dev_metrics.predict = (  # type: ignore[assignment]
        lambda *args, **kwargs: (
            die() if place == "evaluation" and reached[0] >= step else honest_predict(*args, **kwargs)
        )
    )
    return fit(run, cache_dir)
