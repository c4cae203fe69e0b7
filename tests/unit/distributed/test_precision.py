"""The number format by what a device is good at; fp16's loss scale."""

from __future__ import annotations

import pytest
import torch

from pal_dist.core.errors import UserError
from pal_dist.distributed.precision import LossScale, choose_precision


@pytest.mark.parametrize(
    ("asked", "capability", "chosen"),
    [
        ("auto", None, "fp32"),
        ("auto", (7, 5), "fp16"),
        ("auto", (8, 0), "bf16"),
        ("auto", (9, 0), "bf16"),
        ("fp32", (8, 0), "fp32"),
        ("fp16", (9, 0), "fp16"),
        ("bf16", None, "bf16"),
        ("fp16", None, "needs a GPU"),
        ("bf16", (7, 5), "only emulates bf16"),
    ],
)
def test_precision_by_capability(asked: str, capability: tuple[int, int] | None, chosen: str) -> None:
    if " " in chosen:
        with pytest.raises(UserError, match=chosen):
            choose_precision(asked, capability)
    else:
        assert choose_precision(asked, capability).name == chosen


def test_halved_and_doubled() -> None:
    scale = LossScale(1024.0, patience=3)
    gradients = [torch.full((2,), 2048.0), torch.ones(1)]
    assert not scale.unscale(gradients).item()
    assert gradients[0].tolist() == [2.0, 2.0]
    overflow = scale.unscale([torch.tensor([float("inf")]), torch.ones(1)])
    assert overflow.item() == 1.0
    scale.update(overflow)
    assert scale.state_dict() == {"scale": 512.0, "fine": 0}
    for _ in range(3):
        scale.update(torch.zeros(()))
    assert scale.state_dict() == {"scale": 1024.0, "fine": 0}
    other = LossScale()
    other.load_state_dict(scale.state_dict())
    assert other.state_dict() == scale.state_dict()
