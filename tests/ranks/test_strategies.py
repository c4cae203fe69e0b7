"""Every strategy, one truth: the same parameters as one process with one big batch, whatever shares out what."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from torch.distributed.tensor import DTensor

from pal_dist.config.schema import RunConfig
from pal_dist.memory.closed_form import StepOptions, shape_of
from pal_dist.memory.sharding import sharded
from pal_dist.models.multi_task import MultiTaskBert, model_config
from pal_dist.models.pretrained import read_model_config
from pal_dist.tasks.registry import resolve_tasks
from pal_dist.training.setup import set_up
from pal_dist.training.trainer import Trainer
from tests.support.ranks import run_ranks
from tests.support.training import SHARED_OUT, Parameters, distances, fit_quietly, plain_reference

CASES = {
    "accumulated, clipped, a partial last step": {"tokens_per_micro_batch": 64, "max_gradient_norm": 0.5},
    "checkpointed, one micro-batch a task": {
        "tokens_per_micro_batch": 4096,
        "checkpoint_layers": 1,
        "max_gradient_norm": 1e3,
    },
    "an odd example for two ranks": {"max_steps": 5, "batch_size": 3, "tokens_per_micro_batch": 64},
    "frozen encoder": {"max_steps": 5, "mode": "pretrain", "tokens_per_micro_batch": 64, "max_gradient_norm": 0.5},
}


@pytest.mark.long
@pytest.mark.parametrize("case", CASES)
def test_same_parameters_as_one_process(case: str, tiny_run, cache_dir: Path, tmp_path: Path) -> None:
    flags = {"max_steps": 9, "evaluate_every": "none", **CASES[case]}
    reference = plain_reference(tiny_run(**flags), cache_dir)
    metrics = None
    for strategy in ["ddp", *SHARED_OUT]:
        run = tiny_run(**flags, strategy=strategy, output_dir=tmp_path / strategy)
        for answer in run_ranks(fit_quietly, run, cache_dir):
            assert not isinstance(answer, Exception), (strategy, answer)
            whole, worst = distances(answer[0], reference)
            print(f"{case}: {strategy}: {whole:.1e} of all parameters, {worst:.1e} of the worst")
            assert whole < 1e-6, strategy
            assert worst < 1e-5 if "offload" not in strategy else worst < 3e-5, strategy
            metrics = metrics or answer[1]
            for task, values in metrics.items():
                assert answer[1][task] == pytest.approx(values, abs=1e-3, nan_ok=True), strategy


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["zero2_offload", "zero3_offload", "fsdp2"])
def test_alone(strategy: str, tiny_run, cache_dir: Path) -> None:
    """One GPU whose host lends memory: no launcher, one process."""
    run = tiny_run(max_steps=4, max_gradient_norm=0.5, strategy=strategy)
    (answer,) = run_ranks(fit_quietly, run, cache_dir, ranks=1)
    assert not isinstance(answer, Exception), answer
    whole, worst = distances(answer[0], plain_reference(run, cache_dir))
    assert whole < 1e-6
    assert worst < 1e-5


def fit_with_other_tasks_on_the_other_rank(run: RunConfig, cache_dir: Path) -> Parameters:
    """The second rank goes through its micro-batches, and so through the tasks, from the last to the first."""
    trainer = Trainer(set_up(run, {}, cache_dir=cache_dir))
    honest = trainer.run.micro_batches
    if trainer.engine.rank:
        trainer.run.micro_batches = lambda served: honest(served)[::-1]  # type: ignore[method-assign]
    trainer.fit()
    trainer.run.report.close()
    return {name: value.detach().numpy().copy() for name, value in trainer.engine.full_state_dict().items()}


@pytest.mark.long
def test_different_tasks_on_different_ranks(tiny_run, cache_dir: Path, tmp_path: Path) -> None:
    """Where DeepSpeed alone sums one task's gradients into another's: para and sts have heads of one size."""
    flags = {"max_steps": 8, "max_gradient_norm": 0.5, "tokens_per_micro_batch": 96, "evaluate_every": "none"}
    reference = plain_reference(tiny_run(**flags), cache_dir)
    for strategy in ("ddp", "zero1", "zero2", "zero2_offload"):
        run = tiny_run(**flags, strategy=strategy, output_dir=tmp_path / strategy)
        for answer in run_ranks(fit_with_other_tasks_on_the_other_rank, run, cache_dir):
            assert isinstance(answer, dict), answer
            whole, worst = distances(answer, reference)
            print(f"different tasks on different ranks: {strategy}: {whole:.1e}, {worst:.1e} of the worst")
            assert whole < 1e-6, strategy
            assert worst < 1e-5, strategy


def bytes_held(run: RunConfig, cache_dir: Path) -> int:
    """Of all tensors that are alive between two steps, each storage once."""
    trainer = Trainer(set_up(run, {}, cache_dir=cache_dir))
    trainer.engine.model.train()
    for served in trainer.run.schedule.steps(0, 2):
        trainer.step(served)
        trainer.state.step += 1
    gc.collect()
    held: dict[int, int] = {}
    for item in gc.get_objects():
        if isinstance(item, torch.Tensor):
            local = item.to_local() if isinstance(item, DTensor) else item
            held[local.untyped_storage().data_ptr()] = local.untyped_storage().nbytes()
    trainer.run.report.close()
    trainer.engine.close()
    return sum(held.values())


@pytest.mark.parametrize("strategy", ["ddp", "zero1", "zero3", "fsdp2"])
def test_the_algebra_of_shares(strategy: str, minilm: Path, tiny_run, cache_dir: Path, tmp_path: Path) -> None:
    """What the planner says a rank holds, against what it holds; the planner's also has what is there for moments."""
    run = tiny_run(model=minilm, strategy=strategy, adapter_hidden=60, adapter_heads=12)
    config = model_config(read_model_config(minilm), resolve_tasks(run.data.tasks), run.model, 48)
    with torch.device("meta"):
        model_shape = shape_of(MultiTaskBert(config), config)
    parts = sharded(model_shape, StepOptions("fp32"), strategy, 2)
    planned = parts.parameters + parts.state + parts.buffers
    for held in run_ranks(bytes_held, run, cache_dir):
        assert isinstance(held, int), held
        assert 0.6 * planned < held < 1.03 * planned
        assert strategy != "ddp" or held == pytest.approx(planned, rel=0.01)
