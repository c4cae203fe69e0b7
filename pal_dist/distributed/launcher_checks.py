"""What the launcher and the batch system promised, against the processes that came.

A process that was told nothing believes to be alone, trains the whole run by itself, and ends with exit code 0; so does
the one beside it. `accelerate launch --cpu --num_machines 2` does this, and so does `--num_machines 2` without
`--multi_gpu` where a node shows one GPU (Accelerate 1.15, commands/launch.py), and a forgotten `srun`.
"""

from __future__ import annotations

from collections.abc import Mapping

from pal_dist.core.errors import UserError

EXPECTED_RANKS = "PAL_DIST_EXPECTED_RANKS"
"""Set by the launch scripts: nodes x processes per node."""

CURE = "start one launcher per node with `sbatch launch/slurm/train.sbatch ...`, or `bash launch/node.sh` under srun"


def check_ranks(environment: Mapping[str, str], ranks: int) -> None:
    """Raises UserError where this process was told of fewer processes than there are."""
    expected = environment.get(EXPECTED_RANKS)
    if expected and int(expected) != ranks:
        raise UserError(
            f"{expected} processes were to be started, but this one was told of {ranks}: each would train by itself. "
            f"The launcher's options contradict its config (--cpu, or no --multi_gpu?): {CURE}"
        )
    tasks = int(environment.get("SLURM_STEP_NUM_TASKS", "1")) if "SLURM_STEP_ID" in environment else 1
    if ranks < tasks and not expected:
        raise UserError(
            f"srun started {tasks} tasks on {environment.get('SLURM_STEP_NODELIST', 'this node')}, but this process "
            f"was told of {ranks}: each would train by itself. Accelerate needs --multi_gpu (and no --cpu) to go over "
            f"several nodes: {CURE}. (Runs of their own on purpose: {EXPECTED_RANKS}=1)"
        )


def check_nodes(environment: Mapping[str, str], ranks: int, local_ranks: int) -> None:
    """Raises UserError where a job has several nodes and a run uses one of them.

    For training only: to score a model on the first node of a job is no mistake.
    """
    nodes = int(environment.get("SLURM_JOB_NUM_NODES", "1"))
    if "SLURM_STEP_ID" in environment:  # a step may be on one node on purpose
        nodes = int(environment.get("SLURM_STEP_NUM_NODES", "1"))
    if nodes > 1 and ranks == local_ranks and EXPECTED_RANKS not in environment:
        raise UserError(
            f"the job has {nodes} nodes ({environment.get('SLURM_JOB_NODELIST', '')}), but only this one would train: "
            f"was srun forgotten? {CURE}"
        )


def check_devices(environment: Mapping[str, str], seen: int) -> None:
    """Raises UserError where a job was given GPUs that PyTorch does not see: it would train on processors, slowly."""
    promised = int(environment.get("PAL_DIST_EXPECTED_GPUS", "0"))
    if promised and not seen:
        raise UserError(
            f"this node was given {promised} GPUs, but PyTorch sees none: a PyTorch built for CPUs, or no driver "
            f"(`pal-dist doctor` says which). To train on processors, give --cpu to the launch script"
        )


def batch_job_of(environment: Mapping[str, str]) -> dict[str, str]:
    """The batch system's names for this run: its job, and how often it was started again."""
    if "SLURM_JOB_ID" not in environment:
        return {}
    array = environment.get("SLURM_ARRAY_JOB_ID")
    name = f"{array}_{environment.get('SLURM_ARRAY_TASK_ID')}" if array else environment["SLURM_JOB_ID"]
    # Slurm leaves the count out of the first run's environment.
    return {"slurm_job": name, "slurm_restarts": environment.get("SLURM_RESTART_COUNT", "0")}
