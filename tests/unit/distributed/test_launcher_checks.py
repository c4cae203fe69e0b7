"""What launcher and batch system promised: refused where the processes that came are others."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

from pal_dist.core.errors import UserError
from pal_dist.distributed.launcher_checks import batch_job_of, check_devices, check_nodes, check_ranks

STEP = {"SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "n[1-2]"}


@pytest.mark.parametrize(
    ("environment", "ranks", "says"),
    [
        ({}, 1, None),
        ({"PAL_DIST_EXPECTED_RANKS": "8"}, 8, None),
        ({"PAL_DIST_EXPECTED_RANKS": "8"}, 1, "8 processes were to be started, but this one was told of 1"),
        ({**STEP, "SLURM_STEP_NUM_TASKS": "2"}, 2, None),
        ({**STEP, "SLURM_STEP_NUM_TASKS": "2"}, 1, r"srun started 2 tasks on n\[1-2\], but this process was told of 1"),
        ({**STEP, "SLURM_STEP_NUM_TASKS": "2", "PAL_DIST_EXPECTED_RANKS": "1"}, 1, None),  # on purpose
        ({"SLURM_STEP_NUM_TASKS": "2"}, 1, None),  # in the batch script, not in a step
    ],
)
def test_ranks(environment: dict[str, str], ranks: int, says: str | None) -> None:
    with pytest.raises(UserError, match=says) if says else nullcontext():
        check_ranks(environment, ranks)


@pytest.mark.parametrize(
    ("environment", "ranks", "refused"),
    [
        ({"SLURM_JOB_NUM_NODES": "2"}, 4, True),
        ({"SLURM_JOB_NUM_NODES": "2"}, 8, False),
        ({"SLURM_JOB_NUM_NODES": "2", "PAL_DIST_EXPECTED_RANKS": "4"}, 4, False),
        ({"SLURM_JOB_NUM_NODES": "2", **STEP, "SLURM_STEP_NUM_NODES": "1"}, 4, False),  # a step on one node, on purpose
        ({}, 4, False),
    ],
)
def test_nodes(environment: dict[str, str], ranks: int, refused: bool) -> None:
    with pytest.raises(UserError, match="was srun forgotten") if refused else nullcontext():
        check_nodes(environment, ranks, local_ranks=4)


def test_devices() -> None:
    check_devices({}, 0)
    check_devices({"PAL_DIST_EXPECTED_GPUS": "4"}, 4)
    with pytest.raises(UserError, match="given 4 GPUs, but PyTorch sees none"):
        check_devices({"PAL_DIST_EXPECTED_GPUS": "4"}, 0)


def test_batch_job() -> None:
    assert batch_job_of({}) == {}
    assert batch_job_of({"SLURM_JOB_ID": "7"}) == {"slurm_job": "7", "slurm_restarts": "0"}
    array = {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2", "SLURM_RESTART_COUNT": "1"}
    assert batch_job_of(array) == {"slurm_job": "7_2", "slurm_restarts": "1"}
