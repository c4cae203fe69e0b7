"""Law 7: a trace on fake tensors is what real tensors allocate. (Every option, and models of others: tests/ranks.)"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pal_dist.memory import find_device, trace
from pal_dist.memory.closed_form import StepOptions
from pal_dist.memory.tracker import CATEGORIES
from tests.support.memory import measured_on_cpu
from tests.support.random_runs import batch_of, build, config_of, optimizer_of, traced


def test_equals_real_allocations_on_a_cpu() -> None:
    config = config_of(96, 2, 4, "pal", 48, 4, vocab_size=500)
    sizes = [(12, 64, "sst", "para", "sts"), (8, 50, "para"), (4, 80, "sts")]
    step = traced(config, StepOptions("bf16", checkpoint_layers=2), [batch_of(*size) for size in sizes], None)
    model = build(config, 2).train()
    measured = measured_on_cpu(model, optimizer_of(model, "adamw"), sizes, "bf16")
    assert step.peak == pytest.approx(measured, rel=1e-3)


def test_a_model_without_loss_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="returns no loss"):
        trace(nn.Linear(3, 3), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="precision is one of"):
        trace(nn.Linear(3, 3), torch.zeros(2, 3), precision="int8")


def test_nothing_is_allocated() -> None:
    """A step of 100 GiB is traced on any machine."""
    config = config_of(256, 2, 4)
    step = traced(config, StepOptions("fp32", "eager"), [batch_of(1600, 512)], find_device("t4"))
    assert step.peak > 50 * (1 << 30)


def test_categories_are_complete() -> None:
    step = traced(config_of(128, 2, 2), StepOptions("fp16"), [batch_of(4, 32)] * 2, find_device("t4"))
    assert set(step.categories) == set(CATEGORIES)
    assert all(sum(entry.values()) <= step.peak for _, entry in step.timeline)
    assert max(sum(entry.values()) for _, entry in step.timeline) == step.peak
