"""Law 7: `profile` runs the step that `plan` called the worst, under every sampling and for any number of ranks."""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
from numpy.typing import NDArray

from pal_dist.commands.memory_check import worst_step
from pal_dist.config.resolve import resolve
from pal_dist.config.schema import BatchConfig
from pal_dist.core.units import round_up
from pal_dist.data.batching import Schedule
from pal_dist.data.sampling import Sampling
from pal_dist.memory.closed_form import StepOptions
from pal_dist.memory.devices import find_device
from pal_dist.memory.planner import rows_per_rank, workload_of
from pal_dist.memory.search import Machine, Plan
from tests.support.random_runs import config_of

KINDS = get_args(get_type_hints(BatchConfig)["sampling"])
SIZES = (90, 700, 50)
BATCH_SIZE, EPOCHS, MULTIPLE = 16, 5, 8


def lengths_up_to(longest: int) -> list[NDArray[np.int32]]:
    draw = np.random.default_rng(0)
    return [np.append(draw.integers(5, longest, size - 1), longest).astype(np.int32) for size in SIZES]


def planned_and_profiled(
    kind: str, step_tasks: str, ranks: int, tokens: int, longest: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    """(examples, length) of the worst micro-batch: as `plan` says, as `profile` would run it."""
    lengths = lengths_up_to(longest)
    sampling = Sampling(kind, SIZES, BATCH_SIZE, step_tasks, EPOCHS)
    flags = {"sampling": kind, "step_tasks": step_tasks, "batch_size": BATCH_SIZE, "max_length": 512}
    work = workload_of(
        resolve(flags)[0],
        config_of(24, 2, 2, "none"),
        ranks=ranks,
        multiple=MULTIPLE,
        sampling=sampling,
        lengths=lengths,
    )
    plan = Plan(work, Machine(find_device("t4"), gpus=ranks), StepOptions(), "ddp", tokens)
    run: Any = SimpleNamespace(
        schedule=SimpleNamespace(lengths=lengths, sampling=sampling),
        state=SimpleNamespace(tokens_per_micro_batch=tokens),
        engine=SimpleNamespace(ranks=ranks, padded_length=lambda length: round_up(length, MULTIPLE)),
    )
    *_, largest = worst_step(run)
    width = round_up(int(lengths[largest.task][largest.rows].max()), MULTIPLE)
    return plan.worst_batch, (len(largest.rows), width)


@pytest.mark.parametrize(("kind", "step_tasks"), list(product(KINDS, ("all", "one"))))
def test_profile_runs_what_plan_called_the_worst(kind: str, step_tasks: str) -> None:
    for ranks, tokens in product((1, 2, 3), (64, 640, 1 << 20)):
        planned, profiled = planned_and_profiled(kind, step_tasks, ranks, tokens, longest=61)
        assert profiled == planned, (ranks, tokens)


@pytest.mark.parametrize("kind", KINDS)
def test_long_texts_leave_less_than_one_of_them_out(kind: str) -> None:
    """The plan takes a budget to be full; `profile` fills it with the longest examples, as many as go in whole."""
    for ranks, tokens in product((1, 3), (512, 1000, 4096, 1 << 20)):
        planned, profiled = planned_and_profiled(kind, "all", ranks, tokens, longest=500)
        assert profiled[0] * profiled[1] > planned[0] * planned[1] - 504, (ranks, tokens)


@pytest.mark.parametrize(("kind", "step_tasks"), list(product(KINDS, ("all", "one"))))
def test_no_step_has_more(kind: str, step_tasks: str) -> None:
    sampling = Sampling(kind, SIZES, BATCH_SIZE, step_tasks, EPOCHS)
    steps = Schedule(sampling, lengths_up_to(61)).steps(0, EPOCHS * sampling.steps_per_epoch)
    assert max(len(rows) for served in steps for _, rows in served) <= rows_per_rank(sampling, 1)
