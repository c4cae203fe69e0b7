"""The batch scripts, unchanged, on a real Slurm of pretend nodes: end to end, and through everything that may happen.

Jobs that something happens to are started first, by a fixture, and looked at last; while they wait for Slurm, the other
jobs run.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from pal_dist.commands.train import train as train_here
from pal_dist.config.resolve import resolve
from pal_dist.config.schema import RunConfig
from pal_dist.monitoring import run_files
from tests.support.ranks import run_ranks
from tests.support.slurm_cluster import SCRIPTS, Cluster, Job, start_cluster, stop_cluster

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
    return [
        "--cpu",
        "--data_dir",
        small_data,
        "--model",
        tiny_bert,
        "--cache_dir",
        cache_dir,
        "--output_dir",
        "run",
        "--max_length",
        48,
        "--batch_size",
        8,
        "--adapter_hidden",
        12,
        "--adapter_heads",
        2,
        "--max_steps",
        120,
        "--epochs",
        99,
        "--evaluate_every",
        "none",
        "--log_every",
        1,
        "--learning_rate",
        1e-3,
    ]


@dataclass
class Disturbed:
    undisturbed: Job
    node_lost: Job
    time_limit: Job
    preempted: Job
    busy_node: Job
    more_time: Thread


@pytest.fixture(scope="module")
def disturbed(cluster: Cluster, small: list[object], tmp_path_factory: pytest.TempPathFactory) -> Disturbed:
    """Three jobs of two nodes in trouble, one that fails where a node is busy, and one that nothing happens to."""
    folder = tmp_path_factory.mktemp("disturbed")

    def submit(name: str, *words: object, seconds: float = 0.25) -> Job:
        slow = {"PYTHONPATH": str(SLOW), "PAL_DIST_TEST_STEP_SECONDS": str(seconds)}
        return cluster.submit(folder / name, "--nodes=2", *words, TRAIN, *small, "--save_every", 10, **slow)

    # Too slow to be through before the signal, which Slurm may send a minute early; started again, it has the time.
    limit = submit("limit", "--nodelist=n1,n2", "--time=3", "--signal=B:USR1@60", seconds=1.5)
    more_time = Thread(target=give_more_time, args=(limit,), daemon=True)
    more_time.start()
    lost = submit("lost", "--exclude=n1,n2,n6,n7")
    preempted = submit("preempted", "--nodelist=n6,n7")
    preempted.at_step(15)
    cluster.submit(folder, "--partition=urgent", "--nodelist=n6,n7", "--nodes=2", "--exclusive", "--wrap=sleep 3")
    lost.at_step(15)
    cluster.power(lost.status().entry.host, on=False)
    (folder / "undisturbed" / "run").mkdir(parents=True)
    # A request to a run that has ended since: nothing to this one.
    (folder / "undisturbed" / "run" / run_files.STOP).touch()
    undisturbed = submit("undisturbed", "--nodelist=n1,n2", seconds=0.0)
    busy = fail_on_a_busy_node(cluster, small, folder / "busy")
    return Disturbed(undisturbed, lost, limit, preempted, busy, more_time)


def fail_on_a_busy_node(cluster: Cluster, small: list[object], folder: Path) -> Job:
    """The run is refused its folder, and the node does not answer the script's first question whether it is alive."""
    (folder / "run").mkdir(parents=True)
    (folder / "run" / "thesis.tex").touch()
    srun, asked = folder / "bin" / "srun", folder / "asked"
    srun.parent.mkdir()
    once = f'case " $* " in *" --overlap "*) [ -e {asked} ] || {{ touch {asked}; exit 1; }} ;; esac'
    srun.write_text(f'#!/bin/sh\n{once}\nexec {shutil.which("srun")} "$@"\n')
    srun.chmod(0o755)
    return cluster.submit(folder, "--nodelist=n1", TRAIN, *small, PATH=f"{srun.parent}:{os.environ['PATH']}")


def give_more_time(job: Job) -> None:
    """As soon as Slurm has sent its signal, the limit is raised: once started again the job shall end."""
    job.until(lambda job: "SIGUSR1" in job.said)
    job.cluster.ask("scontrol", "update", f"JobId={job.number}", "TimeLimit=30")


def test_disturbances_begin(disturbed: Disturbed) -> None:
    assert disturbed.undisturbed.ended() == "COMPLETED", disturbed.undisturbed.said
    assert disturbed.undisturbed.status().verdict == "finished"


@pytest.mark.parametrize("strategy", ["ddp", "zero2"])
def test_two_nodes_of_two_on_real_data(
    strategy: str, cluster: Cluster, shared: Path, tiny_bert: Path, cache_dir: Path, tmp_path: Path
) -> None:
    """The same parameters as four processes of this machine that no launcher and no Slurm has started."""
    settings = {
        "data_dir": shared / "data",
        "model": tiny_bert,
        "cache_dir": cache_dir,
        "tasks": "sst,sts",
        "max_length": 48,
        "batch_size": 16,
        "adapter_hidden": 12,
        "adapter_heads": 2,
        "max_steps": 8,
        "learning_rate": 1e-3,
    }
    words = [word for name, value in settings.items() for word in (f"--{name}", value)]
    job = cluster.submit(
        tmp_path,
        "--nodes=2",
        "--nodelist=n1,n2",
        TRAIN,
        "--cpu",
        "--processes",
        2,
        "--strategy",
        strategy,
        *words,
        "--output_dir",
        "run",
    )
    assert job.ended() == "COMPLETED", job.said
    assert f"strategy: {strategy} over 4 ranks" in job.said
    texts = {name: str(value) for name, value in settings.items()}
    run, origins = resolve({**texts, "strategy": strategy, "output_dir": str(tmp_path / "local")})
    local = run_ranks(train_without_slurm, run, origins, cache_dir, ranks=4)
    assert all(isinstance(answer, dict) for answer in local), local
    assert_same(parameters(job.run), parameters(tmp_path / "local"))


def train_without_slurm(run: RunConfig, origins: dict[str, str], cache_dir: Path) -> dict[str, Any]:
    return train_here(run, origins, cache_dir=cache_dir)


def test_a_killed_rank(cluster: Cluster, small: list[object], tmp_path: Path) -> None:
    """kill -9 of rank 1 of 2: the job ends, is not put back, and says who is missing."""
    slow = {"PYTHONPATH": str(SLOW), "PAL_DIST_TEST_STEP_SECONDS": "0.3"}
    job = cluster.submit(tmp_path, "--nodes=2", "--nodelist=n1,n2", TRAIN, *small, **slow)
    job.at_step(3)
    (rank,) = (process for process in psutil.process_iter() if is_rank(process, job, 1))
    rank.kill()
    assert job.ended() == "FAILED", job.said
    assert job.exit_code != 75
    assert int(job.show()["Restarts"]) == 0
    assert "exitcode  : -9" in job.said
    assert "another rank is gone" in job.said
    assert "exit code 74: a process or its node is gone" in job.said


def is_rank(process: psutil.Process, job: Job, rank: int) -> bool:
    try:
        environment = process.environ()
        return environment.get("SLURM_JOB_ID") == job.number and environment.get("RANK") == str(rank)
    except psutil.Error:
        return False


def test_doctor(cluster: Cluster, cache_dir: Path, tmp_path: Path) -> None:
    """`train.sbatch doctor`: every node is looked at, and two steps are trained on both."""
    job = cluster.submit(
        tmp_path,
        "--nodes=2",
        "--nodelist=n1,n2",
        TRAIN,
        "doctor",
        "--cpu",
        "--output_dir",
        "run",
        "--cache_dir",
        cache_dir,
    )
    assert job.ended() == "COMPLETED", job.said
    assert re.search(r"green +ranks +2: 1 on n1, 1 on n2; strategy ddp", job.said), job.said
    assert re.search(r"green +training +2 steps under ddp in fp32.*the same parameters on all ranks", job.said), (
        job.said
    )


def test_sweep(cluster: Cluster, small: list[object], tmp_path: Path) -> None:
    """Four combinations; one folder holds something else, so that one fails, and it alone."""
    foreign = tmp_path / "sweep" / "sampling_sqrt-seed_0"
    foreign.mkdir(parents=True)
    (foreign / "thesis.tex").touch()
    at = small.index("--output_dir")
    settings = [*small[:at], *small[at + 2 :], "--max_steps", 3]
    first = cluster.submit(
        tmp_path,
        "--array=0-3%2",
        SCRIPTS / "sweep.sbatch",
        "--samplings",
        "round_robin,sqrt",
        "--seeds",
        "0,1",
        "--sweep_dir",
        "sweep",
        *settings,
    )
    elements = [Job(cluster, f"{first.number}_{index}", tmp_path) for index in range(4)]
    states = [element.ended() for element in elements]
    assert states == ["COMPLETED", "COMPLETED", "FAILED", "COMPLETED"], first.said
    assert elements[2].exit_code == 2
    assert "sampling_sqrt-seed_0 holds files that are no run of pal-dist" in first.said
    listed = subprocess.run(
        [sys.executable, "-m", "pal_dist", "status", tmp_path / "sweep"], capture_output=True, text=True, check=True
    ).stdout
    assert listed.count("finished") == 3


@pytest.mark.parametrize(("forced", "code"), [([], 0), (["--force_tokens", 300], 4)])
def test_memory_smoke(forced: list[object], code: int, cluster: Cluster, small: list[object], tmp_path: Path) -> None:
    job = cluster.submit(tmp_path, SCRIPTS / "memory_smoke.sbatch", *small, *forced, "--tokens_per_micro_batch", 96)
    assert job.ended() == ("FAILED" if code else "COMPLETED"), job.said
    assert job.exit_code == code
    assert ("measured DIFFERS from the plan" if code else "measured agrees with the plan") in job.said
    assert (job.run / "profile.json").is_file()


OVER_NODES = "--num_machines 2 --num_processes 2 --machine_rank $SLURM_NODEID --main_process_ip n1 --main_process_port"

TRAPS = {
    "cpu flag": (f"--cpu {OVER_NODES} 21001", "srun started 2 tasks on n[1-2], but this process was told of 1"),
    "no multi_gpu": (f"{OVER_NODES} 21002", "srun started 2 tasks on n[1-2], but this process was told of 1"),
    "no srun": (
        "--multi_gpu --num_machines 1 --num_processes 2 --main_process_port 21003",
        "the job has 2 nodes (n[1-2]), but only this one would train: was srun forgotten?",
    ),
    "deepspeed on CPU": (
        f"--use_deepspeed --deepspeed_multinode_launcher standard {OVER_NODES} 21004",
        "the launcher asks for DeepSpeed without a deepspeed_config_file",
    ),
    "multi_gpu on CPU": (f"--multi_gpu {OVER_NODES} 21005", ""),
}
"""What a person may write instead of our scripts: each node trained by itself, and the job was COMPLETED."""


def test_silent_traps_have_a_name(cluster: Cluster, small: list[object], tmp_path: Path) -> None:
    """The last one needs no error: it trains on both nodes together."""
    settings = " ".join(map(str, [*(word for word in small if word != "--cpu"), "--max_steps", 3]))
    jobs = {}
    for name, (options, _) in TRAPS.items():
        launch = f"{sys.executable} -m accelerate.commands.launch --mixed_precision no --dynamo_backend no {options}"
        line = f"{launch} -m pal_dist train {settings}"
        started = line if name == "no srun" else f"srun bash -c '{line}'"  # $SLURM_NODEID is each node's own
        jobs[name] = cluster.submit(
            tmp_path / name.replace(" ", "_"),
            "--nodes=2",
            "--nodelist=n1,n2",
            "--ntasks-per-node=1",
            "--output=said.out",
            f"--wrap={started}",
        )
    for name, (_, words) in TRAPS.items():
        assert jobs[name].ended() == ("FAILED" if words else "COMPLETED"), jobs[name].said
        assert words in jobs[name].said
        if not words:
            assert json.loads((jobs[name].run / "results.json").read_text())["ranks"] == 2


def test_after_the_time_limit(disturbed: Disturbed) -> None:
    """Slurm's signal comes first: saved, requeued, and the end is the same bit for bit."""
    job = disturbed.time_limit
    disturbed.more_time.join()
    assert job.ended(420) == "COMPLETED", job.said
    assert "SIGUSR1 on n1: the run is asked to save itself and stop" in job.said
    assert "exit code 75: stopped and saved" in job.said
    assert "back into the queue: scontrol requeue" in job.said
    assert int(job.show()["Restarts"]) >= 1
    assert job.status().entry.starts >= 2
    assert "started again 1 times (SLURM_RESTART_COUNT)" in job.said
    assert_same(parameters(job.run), parameters(disturbed.undisturbed.run))


def test_after_a_preemption(disturbed: Disturbed) -> None:
    job = disturbed.preempted
    assert job.ended() == "COMPLETED", job.said
    assert "stopped before step" in job.said
    assert int(job.show()["Restarts"]) == 1
    assert_same(parameters(job.run), parameters(disturbed.undisturbed.run))


def test_after_a_lost_node(disturbed: Disturbed) -> None:
    """The node of rank 0 lost power; Slurm put the job on others, and it went on from its last checkpoint."""
    job = disturbed.node_lost
    assert job.ended() == "COMPLETED", job.said
    assert int(job.show()["Restarts"]) == 1
    assert "resumed after step" in job.said
    assert_same(parameters(job.run), parameters(disturbed.undisturbed.run))


def test_after_a_busy_node(disturbed: Disturbed) -> None:
    """A node that did not answer once is no lost node: the job ends with the program's own exit code."""
    job = disturbed.busy_node
    assert job.ended() == "FAILED"
    assert job.exit_code == 2, job.said
    assert "n1 does not answer" in job.said
    assert "all nodes answer: none is lost, and the job ends" in job.said
