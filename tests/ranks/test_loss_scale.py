"""fp16's loss scale: it changes nothing but what would overflow, and all ranks skip the same steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pal_dist.config.schema import RunConfig
from pal_dist.distributed.precision import LossScale
from pal_dist.training.setup import set_up
from pal_dist.training.trainer import Trainer
from tests.support.ranks import run_ranks


def train(run: RunConfig, cache_dir: Path, scale: float, overflow_at: int = -1) -> Any:
    trainer = Trainer(set_up(run, {}, cache_dir=cache_dir))
    engine = trainer.engine
    if scale:
        engine.loss_scale = engine.backend.loss_scale = LossScale(scale)
    honest = engine.backend.backward

    def backward(loss: torch.Tensor, *, last: bool) -> None:
        overflows = trainer.state.step == overflow_at and engine.rank == 1
        honest(loss * float("inf") if overflows else loss, last=last)

    engine.backend.backward = backward  # type: ignore[method-assign]
    trainer.fit()
    trainer.run.report.close()
    return {name: value.numpy() for name, value in engine.full_state_dict().items()}, engine.loss_scale_state()


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["ddp", "zero2", "zero3", "fsdp2"])
def test_scaled_is_unscaled(strategy: str, tiny_run, cache_dir: Path, tmp_path: Path) -> None:
    flags = {"strategy": strategy, "max_steps": 3, "max_gradient_norm": 0.5, "evaluate_every": "none"}
    plain, scaled, overflown = (
        run_ranks(train, tiny_run(**flags, output_dir=tmp_path / str(number)), cache_dir, *arguments)
        for number, arguments in enumerate([(0.0,), (1024.0,), (1024.0, 1)])
    )
    for name, value in plain[0][0].items():
        if "key.bias" not in name:
            np.testing.assert_allclose(scaled[0][0][name], value, rtol=0, atol=1e-6, err_msg=name)
    assert scaled[0][1] == {"scale": 1024.0, "fine": 3}
    for values, state in overflown:  # rank 1 overflowed, both skipped
        assert state == {"scale": 512.0, "fine": 1}
        for name, value in overflown[0][0].items():
            np.testing.assert_array_equal(values[name], value)
            assert np.isfinite(value).all()
