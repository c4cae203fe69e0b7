"""Each task's gradient by itself: their inner products, their weighted sum, and what is left alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from pal_dist.config.schema import ModelConfig
from pal_dist.distributed import task_gradients
from pal_dist.distributed.task_gradients import TaskGradients
from pal_dist.models.multi_task import build_model
from pal_dist.tasks.registry import resolve_tasks
from tests.support.laws import loss_of, random_batch


@pytest.mark.parametrize("piece", [1, 8, 1000])
def test_inner_products_and_weighted_sum(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against whole vectors, in pieces that no parameter's size divides; served in another order than numbered."""
    monkeypatch.setattr(task_gradients, "PIECE_ELEMENTS", piece)
    shared = [nn.Parameter(torch.zeros(shape, dtype=torch.float64)) for shape in ((3, 4), (5,), (2, 2))]
    gradients = TaskGradients(shared, 3, ranks=1)
    whole = torch.randn(3, 21, dtype=torch.float64)
    for number, task in enumerate((2, 0, 1)):
        for parameter, part in zip(shared, whole[task].split([p.numel() for p in shared]), strict=True):
            parameter.grad = part.view_as(parameter).clone()
        gradients.set_aside(task, last=number == 2)
    torch.testing.assert_close(gradients.gram(), whole @ whole.T, rtol=1e-12, atol=1e-12)
    weights = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    gradients.merge(weights)
    merged = torch.cat([parameter.grad.flatten() for parameter in shared if parameter.grad is not None])
    torch.testing.assert_close(merged, weights @ whole, rtol=1e-12, atol=1e-12)
    assert gradients.aside == {}


def test_the_model_s_own_parts_are_left_alone(tiny_bert: Path) -> None:
    """Adapters and heads are one task's alone: no conflict, and no part in the Gram matrix."""
    model = build_model(tiny_bert, resolve_tasks(["sst", "sts"]), ModelConfig(adapter_hidden=12, adapter_heads=2))
    gradients = TaskGradients(model.shared_parameters(), 2, ranks=1)
    own = {}
    for number, task in enumerate(model.heads):
        loss_of(model, random_batch(model, task)).backward()
        gradients.set_aside(number, last=number == 1)
        own[task] = [p.grad.clone() for p in model.task_parts()[task].parameters()]
    gradients.merge(torch.tensor([0.0, 2.0]))
    for task, before in own.items():
        assert all(torch.equal(p.grad, g) for p, g in zip(model.task_parts()[task].parameters(), before, strict=True))
