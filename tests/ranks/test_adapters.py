"""Every registered adapter through whole training: laws 1, 2 and 3, the plan, and a kind that only a test knows.

(Laws 5 and 6, the authors' own vectors and parameter counts of every kind: tests/unit/models/test_adapters.py.)
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pal_dist.commands.train import train
from pal_dist.core.errors import UserError
from pal_dist.memory.closed_form import PackedSize, StepOptions, step_bytes
from pal_dist.memory.devices import find_device
from pal_dist.memory.search import MARGIN
from pal_dist.models.adapters import Adapter, Geometry
from pal_dist.models.multi_task import MultiTaskBert
from pal_dist.training.setup import set_up
from pal_dist.training.trainer import Trainer
from tests.support.random_runs import NAMES, batch_of, config_of, shape, traced
from tests.support.ranks import in_parallel, run_ranks
from tests.support.training import assert_same, distances, fit, plain_reference, train_in_float64

KINDS = tuple(Adapter.registry)

STEPS, STOP_AT = 4, 2

SETTINGS = {"max_steps": STEPS, "max_gradient_norm": 0.5, "tokens_per_micro_batch": 64, "evaluate_every": "none"}


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
class TestEveryAdapter:
    def test_same_gradient(self, kind: str, tiny_run, cache_dir: Path) -> None:
        """Law 1: whole batches in one process against small micro-batches on two ranks, in float64."""
        run = tiny_run(**SETTINGS, adapter=kind)
        reference = plain_reference(run, cache_dir)
        for answer in run_ranks(train_in_float64, run, cache_dir):
            assert not isinstance(answer, Exception), answer
            assert_same(answer[0], reference)

    def test_invisible_resume(self, kind: str, tiny_run, cache_dir: Path, tmp_path: Path) -> None:
        """Law 3: stopped half-way and gone on with, bit-identical; progressive PALs wake on both sides."""
        clean, _ = fit(tiny_run(**SETTINGS, adapter=kind, dropout=0.1, output_dir=tmp_path / "clean"), cache_dir)
        run = tiny_run(**SETTINGS, adapter=kind, dropout=0.1)
        trainer = Trainer(set_up(run, {}, cache_dir=cache_dir))
        trainer.engine.model.train()
        trainer.log_window.started = time.perf_counter()
        for served in trainer.run.schedule.steps(0, STOP_AT):
            trainer.step(served)
            trainer.state.step += 1
        trainer.save()
        trainer.run.report.close()
        trainer.engine.close()
        resumed, state = fit(run, cache_dir)
        assert state["step"] == STEPS
        for name, value in clean.items():
            assert np.isfinite(value).all(), name
            np.testing.assert_array_equal(resumed[name], value, err_msg=name)


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["zero3", "fsdp2"])
def test_parameters_that_no_forward_reads(strategy: str, tiny_run, cache_dir: Path, tmp_path: Path) -> None:
    """Gates stand in a ParameterDict, which is never called: who gathers parameters by module would miss them."""
    reference = plain_reference(tiny_run(**SETTINGS, adapter="lhuc"), cache_dir)
    for answer in run_ranks(fit, tiny_run(**SETTINGS, adapter="lhuc", strategy=strategy), cache_dir):
        assert not isinstance(answer, Exception), answer
        whole, worst = distances(answer[0], reference)
        assert whole < 2e-6
        # The smallest gradients, rounded to float32, as Adam enlarges them; a gate that is missed: 1.
        assert worst < 1e-3


def error(kind: str) -> list[float]:
    """The closed form over the trace, less one."""
    config = config_of(256, 4, 4, kind, 96, 12, adapter_bottleneck=32)
    errors = []
    for options in (StepOptions("fp32"), StepOptions("fp16", checkpoint_layers=1)):
        batches, device = [batch_of(16, 128, *NAMES)] * 2, find_device("t4")
        whole = traced(config, options, batches, device).peak
        size = PackedSize(16 * 128, 16, 128, len(NAMES))
        errors.append(step_bytes(shape(config), options.on(device), size).peak / whole - 1)
    return errors


@pytest.mark.long
def test_every_adapter_is_planned() -> None:
    """Law 7: the closed form within 5 % of the trace, and not below it by more than the plan's margin."""
    for kind, errors in zip(KINDS, in_parallel(error, KINDS), strict=True):
        print(kind, " ".join(f"{value:+.1%}" for value in errors))
        assert min(errors) > -MARGIN, kind
        assert max(map(abs, errors)) < 0.05, kind


@pytest.fixture
def shift() -> Iterator[str]:
    """A ninth adapter: one class, and nothing else anywhere."""

    class Shift(Adapter, kind="shift"):
        def __init__(self, geometry: Geometry):
            super().__init__(geometry)
            self.by = nn.ParameterDict(
                {str(n): nn.Parameter(torch.zeros(geometry.encoder_hidden)) for n in geometry.layers}
            )

        def after_layer(self, layer: int, hidden_QD: Tensor) -> Tensor:
            return hidden_QD + self.by[str(layer)]

    yield "shift"
    del Adapter.registry["shift"]


def test_a_new_adapter_is_one_class(shift: str, tiny_run, cache_dir: Path, tmp_path: Path) -> None:
    run = tiny_run(adapter=shift)
    reference = plain_reference(run, cache_dir)
    results = train(run, {}, cache_dir=cache_dir)
    saved = MultiTaskBert.from_pretrained(tmp_path / "run" / "model")
    assert saved.config.adapter == "shift"
    assert results["parameters_by_part"]["sts"] == 2 * 24 + 24 + 1
    name = "adapters.sst.by.1"
    np.testing.assert_allclose(saved.state_dict()[name].numpy(), reference[name], atol=1e-5)
    assert saved.state_dict()[name].abs().min() > 0


class TestProgressive:
    def test_sleep_and_waking(self, tiny_run, cache_dir: Path) -> None:
        """Law 2: asleep, bit-unchanged and without optimizer state; the top layer first, the last one half-way."""
        run = tiny_run(adapter="progressive_pal", max_steps=8, evaluate_every="none")
        trainer = Trainer(set_up(run, {}, cache_dir=cache_dir))
        model, optimizer = trainer.engine.model, trainer.engine.optimizer
        names = {
            name: value for name, value in model.named_parameters() if ".attention.0." in name or "gates.0" in name
        }
        before = {name: value.detach().clone() for name, value in names.items()}
        awake = []
        for served in trainer.run.schedule.steps(0, 8):
            trainer.step(served)
            trainer.state.step += 1
            awake.append(model.adapters["sst"].awake)
            for name, value in names.items() if awake[-1] == 1 else ():
                assert torch.equal(value, before[name]), name
                assert value not in optimizer.state
        trainer.run.report.close()
        trainer.engine.close()
        assert awake == [1, 1, 1, 1, 2, 2, 2, 2]
        moved = [name for name, value in names.items() if not torch.equal(value, before[name])]
        assert [name for name in names if name not in moved and "key.bias" not in name] == []
        assert all(float(optimizer.state[value]["step"]) == 4 for value in names.values())

    @pytest.mark.parametrize("strategy", ["zero2", "fsdp2"])
    def test_refused_where_zeros_are_fed(self, strategy: str, tiny_run, cache_dir: Path) -> None:
        run = tiny_run(adapter="progressive_pal", strategy=strategy)
        with pytest.raises(UserError, match=f"--adapter progressive_pal under {strategy}.*use --strategy ddp"):
            set_up(run, {}, cache_dir=cache_dir)
