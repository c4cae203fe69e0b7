"""From settings to a plan and back to flags."""

from __future__ import annotations

import numpy as np
import pytest

from pal_dist.config.resolve import resolve
from pal_dist.config.schema import RunConfig
from pal_dist.core.errors import DoesNotFitError
from pal_dist.data.sampling import Sampling
from pal_dist.data.worst_step import rows_per_rank
from pal_dist.memory.closed_form import StepOptions
from pal_dist.memory.devices import cpu_device, find_device
from pal_dist.memory.planner import as_flags, plan_run, workload_of
from pal_dist.memory.search import Machine, Plan
from tests.support.random_runs import config_of

CONFIG = config_of(24, 2, 2, "pal", 12, 2)
LENGTHS = [np.array([5, 20, 61]), np.array([9, 17]), np.array([30])]


def run_of(**flags: object) -> RunConfig:
    return resolve(flags)[0]


def test_work_without_data_has_every_example_as_long_as_it_may_be() -> None:
    work = workload_of(run_of(batch_size=33, max_length=100), CONFIG, ranks=2)
    assert (work.rows, work.longest, work.tasks_in_step, work.examples) == ((17, 17, 17), 100, 3, 99)
    assert (work.most_rows, work.most_tokens, work.smallest_budget) == (51, 5100, 100)


def test_work_of_data_is_as_long_as_its_texts() -> None:
    sampling = Sampling("proportional", (300, 200, 100), 10)
    run = run_of(batch_size=10, sampling="proportional")
    work = workload_of(run, CONFIG, ranks=4, sampling=sampling, lengths=LENGTHS)
    assert (work.rows, work.longest) == (rows_per_rank(sampling, 4), 61)
    assert work.rows == (4, 3, 2)  # of 15, 10 and 5 examples
    assert work.most_tokens == (5 + 20 + 61) + (9 + 17) + 30
    assert work.mean_length == pytest.approx(np.mean([86 / 3, 13, 30]))
    assert work.smallest_budget == 128, "--tokens_per_micro_batch must hold a sequence of --max_length"


def test_one_task_a_step() -> None:
    work = workload_of(run_of(step_tasks="one", batch_size=8), CONFIG, ranks=1)
    assert (work.tasks_in_step, work.examples, work.rows) == (1, 8, (8, 8, 8))
    assert (work.most_rows, work.most_tokens) == (8, 8 * 128)


@pytest.mark.parametrize(
    ("asked", "planned", "named"),
    [
        ("auto", "single", ""),
        ("auto", "zero2", " --strategy zero2"),
        ("ddp_multinode", "ddp", ""),
        ("zero3", "ddp", " --strategy ddp"),
    ],
)
def test_flags_name_the_strategy_where_it_has_to_change(asked: str, planned: str, named: str) -> None:
    work = workload_of(run_of(strategy=asked), CONFIG, ranks=2)
    plan = Plan(work, Machine(find_device("t4"), gpus=2), StepOptions("fp16", checkpoint_layers=2), planned, 256)
    flags = "--precision fp16 --optimizer adamw --checkpoint_layers 2 --tokens_per_micro_batch 256"
    assert as_flags(plan) == flags + named


def test_what_cannot_fit_is_said_with_what_would() -> None:
    run = run_of(checkpoint_layers=0, max_length=64, batch_size=64, tokens_per_micro_batch=4096)
    sampling = Sampling("round_robin", (300, 200, 100), 64)
    lengths = [np.full(size, 61, dtype=np.int32) for size in sampling.sizes]
    least = Plan(
        workload_of(run, CONFIG, ranks=1, sampling=sampling, lengths=lengths),
        Machine(cpu_device(1)),
        StepOptions("fp32", "eager"),
        "single",
        4096,
    ).needed
    for memory, cure in (
        (least - 1, r"It would with --precision fp32 .*"),
        (1, "Nothing makes it fit but a smaller"),
    ):
        with pytest.raises(DoesNotFitError, match=rf"does not fit: it needs .* GiB even with .*{cure}"):
            plan_run(
                run,
                CONFIG,
                cpu_device(memory),
                strategy="ddp",
                precision="fp32",
                ranks=1,
                sampling=sampling,
                lengths=lengths,
            )
