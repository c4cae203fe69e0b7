"""The tracker sees every storage: against torch.profiler, which counts in the allocator itself."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from pal_dist.memory.tracker import Tracker
from tests.support.memory import existing_tensors, real_step
from tests.support.random_runs import build, config_of, optimizer_of


def test_the_tracker_misses_nothing_that_the_profiler_sees() -> None:
    """torch.profiler counts in the allocator itself, beneath every operation."""
    model = build(config_of(192, 3, 4, "pal", 48, 4)).train()
    update = optimizer_of(model, "adamw")
    real_step(model, update, [(16, 64)])
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        real_step(model, update, [(16, 64)])
    total = highest = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            total += event.nbytes()
            highest = max(highest, total)
    with Tracker(model, granularity=1) as tracker:
        real_step(model, update, [(16, 64)])
    assert tracker.peak - already_there(tracker, model, update) == pytest.approx(highest, rel=2e-3)


def already_there(tracker: Tracker, model: nn.Module, update: torch.optim.Optimizer) -> int:
    """Bytes of what existed before the step and was only seen when an operation returned it."""
    old = {part.untyped_storage()._cdata for part in existing_tensors(model, update)}
    return sum(tracker.blocks[index].bytes for address, (index, _) in tracker._live.items() if address in old)
