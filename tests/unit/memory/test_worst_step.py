"""Law 7: `profile` runs the step that `plan` called the worst, under every sampling and for any number of ranks."""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
from numpy.typing import NDArray

from pal_dist.config.resolve import resolve
from pal_dist.config.schema import BatchConfig
from pal_dist.data.batching import MicroBatch, Schedule, micro_batches
from pal_dist.data.sampling import Sampling
from pal_dist.data.worst_step import rows_per_rank, tokens_of
from pal_dist.memory.closed_form import PackedSize, StepOptions
from pal_dist.memory.devices import find_device
from pal_dist.memory.planner import workload_of
from pal_dist.memory.search import Machine, Plan
from pal_dist.training.worst_batch import worst_step
from tests.support.random_runs import config_of

KINDS = get_args(get_type_hints(BatchConfig)["sampling"])
SIZES = (90, 700, 50)
BATCH_SIZE, EPOCHS = 16, 5


def lengths_up_to(longest: int) -> list[NDArray[np.int32]]:
    draw = np.random.default_rng(0)
    return [np.append(draw.integers(5, longest, size - 1), longest).astype(np.int32) for size in SIZES]


def planned_and_profiled(
    kind: str, step_tasks: str, ranks: int, tokens: int, longest: int, conflict: str = "none"
) -> tuple[Plan, PackedSize, list[MicroBatch]]:
    """(the plan, its worst micro-batch, what `profile` would run)."""
    lengths = lengths_up_to(longest)
    sampling = Sampling(kind, SIZES, BATCH_SIZE, step_tasks, EPOCHS)
    flags = {"sampling": kind, "step_tasks": step_tasks, "batch_size": BATCH_SIZE, "max_length": 512}
    work = workload_of(
        resolve({**flags, "conflict": conflict})[0],
        config_of(24, 2, 2, "none"),
        ranks=ranks,
        sampling=sampling,
        lengths=lengths,
    )
    plan = Plan(work, Machine(find_device("t4"), gpus=ranks), StepOptions(), "ddp", tokens)
    run: Any = SimpleNamespace(
        schedule=SimpleNamespace(lengths=lengths, sampling=sampling),
        state=SimpleNamespace(tokens_per_micro_batch=tokens),
        engine=SimpleNamespace(ranks=ranks),
        separates_tasks=conflict != "none",
    )
    return plan, plan.worst_batch, worst_step(run)


@pytest.mark.parametrize(("kind", "step_tasks"), list(product(KINDS, ("all", "one"))))
@pytest.mark.parametrize("longest", [61, 500])
def test_profile_runs_what_plan_called_the_worst(kind: str, step_tasks: str, longest: int) -> None:
    """The plan takes a budget to be full; `profile` fills it with the longest examples, as many as go in whole."""
    lengths = lengths_up_to(longest)
    for ranks, tokens in product((1, 2, 3), (512, 1000, 4096, 1 << 20)):
        plan, planned, profiled = planned_and_profiled(kind, step_tasks, ranks, tokens, longest)
        largest = tokens_of(profiled[-1], lengths)
        assert largest <= planned.tokens, (ranks, tokens)
        assert largest > planned.tokens - longest, (ranks, tokens)
        if step_tasks == "all":
            # Gradients are there while the largest is computed: where the plan says so, the check makes it so.
            assert plan.accumulates == (len(profiled) > 1), (ranks, tokens)
            assert {task for micro in profiled for task, _ in micro.parts} == {0, 1, 2}


@pytest.mark.parametrize("conflict", ["watch", "pcgrad"])
def test_gradients_kept_apart_are_of_one_task_each(conflict: str) -> None:
    plan, _, profiled = planned_and_profiled("round_robin", "all", 1, 1 << 20, 61, conflict)
    assert [len(micro.parts) for micro in profiled] == [1, 1, 1]
    assert plan.accumulates


@pytest.mark.parametrize(("kind", "step_tasks"), list(product(KINDS, ("all", "one"))))
def test_no_step_has_more(kind: str, step_tasks: str) -> None:
    """No micro-batch of the run is larger than the one that was called the worst."""
    sampling = Sampling(kind, SIZES, BATCH_SIZE, step_tasks, EPOCHS)
    lengths = lengths_up_to(61)
    for ranks, budget in product((1, 3), (500, 1 << 20)):
        _, planned, _ = planned_and_profiled(kind, step_tasks, ranks, budget, 61)
        for served in Schedule(sampling, lengths).steps(0, sampling.steps_per_epoch):
            for micro in micro_batches(served, lengths, budget=budget, rank=0, ranks=ranks):
                # Ranks are served evenly by tokens, so that one of them may have a few rows more than its share.
                assert tokens_of(micro, lengths) <= planned.tokens + (61 if ranks > 1 else 0)


def test_rows_of_a_rank() -> None:
    sampling = Sampling("round_robin", SIZES, BATCH_SIZE, "all", EPOCHS)
    assert rows_per_rank(sampling, 1) == (16, 16, 16)
    assert rows_per_rank(sampling, 3) == (6, 6, 6)
