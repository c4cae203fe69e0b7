"""The batch scripts, unchanged, on a real Slurm of pretend nodes: end to end, and through everything that may happen.

Jobs that something happens to are started first, by a fixture; while they wait for Slurm, the other jobs run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from ranks import run_ranks
from safetensors.torch import load_file
from slurm_cluster import SCRIPTS, Cluster, Job, start_cluster, stop_cluster

from pal_dist.session import train as train_here
from pal_dist.settings import resolve

pytestmark = pytest.mark.long
SLOW = Path(__file__).with_name("slow")
TRAIN = SCRIPTS / "train.sbatch"


@pytest.fixture(scope="module")
def cluster(shared: Path) -> Iterator[Cluster]:
    folder = Path(f"/tmp/pal_dist_slurm_{os.getpid()}")
    found, reason = start_cluster(shared / "slurm", folder, nodes=7)
    if found is None:
        pytest.skip(reason)
    yield found
    stop_cluster(shared / "slurm", folder)


def parameters(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], *, within: float = 0.0) -> None:
    assert one.keys() == other.keys()
    assert one
    for name in one:
        if within:
            torch.testing.assert_close(one[name], other[name], rtol=within, atol=within)
        else:
            assert torch.equal(one[name], other[name]), name


@pytest.fixture(scope="module")
def small(tiny_bert: Path, small_data: Path, cache_dir: Path) -> list[object]:
    """Settings of a run of 120 quick steps."""
    return ["--cpu", "--data_dir", small_data, "--model", tiny_bert, "--cache_dir", cache_dir, "--output_dir", "run",
            "--max_length", 48, "--batch_size", 8, "--adapter_hidden", 12, "--adapter_heads", 2, "--max_steps", 120,
            "--epochs", 99, "--evaluate_every", "none", "--log_every", 1, "--learning_rate", 1e-3]  # fmt: skip


@dataclass
class Disturbed:
    undisturbed: Job
    node_lost: Job
    time_limit: Job
    preempted: Job


@pytest.fixture(scope="module")
def disturbed(cluster: Cluster, small: list[object], tmp_path_factory: pytest.TempPathFactory) -> Disturbed:
    """Three jobs of two nodes in trouble, and one that nothing happens to."""
    folder = tmp_path_factory.mktemp("disturbed")

    def submit(name: str, *words: object, seconds: float = 0.25) -> Job:
        slow = {"PYTHONPATH": str(SLOW), "PAL_DIST_TEST_STEP_SECONDS": str(seconds)}
        return cluster.submit(folder / name, "--nodes=2", *words, TRAIN, *small, "--save_every", 10, **slow)

    limit = submit("limit", "--nodelist=n1,n2", "--time=2", "--signal=B:USR1@60", seconds=0.5)
    lost = submit("lost", "--exclude=n1,n2,n6,n7")
    preempted = submit("preempted", "--nodelist=n6,n7")
    preempted.at_step(15)
    cluster.submit(folder, "--partition=urgent", "--nodelist=n6,n7", "--nodes=2", "--exclusive", "--wrap=sleep 3")
    lost.at_step(15)
    cluster.power(lost.status().entry.host, on=False)
    undisturbed = submit("undisturbed", "--nodelist=n1,n2", seconds=0.0)
    return Disturbed(undisturbed, lost, limit, preempted)


def test_disturbances_begin(disturbed: Disturbed) -> None:
    assert disturbed.undisturbed.ended() == "COMPLETED", disturbed.undisturbed.said
    assert disturbed.undisturbed.status().verdict == "finished"


def test_after_the_time_limit(disturbed: Disturbed) -> None:
    """Slurm's signal comes first: saved, requeued, and the end is the same bit for bit."""
    job = disturbed.time_limit
    assert job.ended(240) == "COMPLETED", job.said
    assert "SIGUSR1 on n1: the run is asked to save itself and stop" in job.said
    assert "exit code 75: stopped and saved" in job.said
    assert "back into the queue: scontrol requeue" in job.said
    assert int(job.show()["Restarts"]) >= 1
    assert job.status().entry.starts >= 2
    assert "started again 1 times (SLURM_RESTART_COUNT)" in job.said
    assert_same(parameters(job.run), parameters(disturbed.undisturbed.run))


def test_after_a_preemption(disturbed: Disturbed) -> None:
    job = disturbed.preempted
    assert job.ended(240) == "COMPLETED", job.said
    assert "stopped before step" in job.said
    assert int(job.show()["Restarts"]) == 1
    assert_same(parameters(job.run), parameters(disturbed.undisturbed.run))


def test_after_a_lost_node(disturbed: Disturbed) -> None:
    """The node of rank 0 lost power; Slurm put the job on others, and it went on from its last checkpoint."""
    job = disturbed.node_lost
    assert job.ended(240) == "COMPLETED", job.said
    assert int(job.show()["Restarts"]) == 1
    assert "going on after step" in job.said
    assert_same(parameters(job.run), parameters(disturbed.undisturbed.run))
