"""A private, real Slurm of pretend nodes on this machine, where root and namespaces allow it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pal_dist.monitoring.status import Status, status_of
from tests.support.paths import ROOT

SCRIPTS = ROOT / "launch" / "slurm"


@dataclass
class Job:
    """A job and the folder that it was submitted from."""

    cluster: Cluster
    number: str
    folder: Path

    def show(self) -> dict[str, str]:
        words = self.cluster.ask("scontrol", "show", "job", "-o", self.number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    @property
    def state(self) -> str:
        return self.show()["JobState"]

    @property
    def exit_code(self) -> int:
        return int(self.show()["ExitCode"].split(":")[0])

    @property
    def said(self) -> str:
        return "".join(path.read_text(errors="replace") for path in sorted(self.folder.glob("*.out")))

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def status(self) -> Status:
        return status_of(self.run)

    def until(self, met: Callable[[Job], bool], seconds: float = 300) -> None:
        """Wait; what the job said last is shown where this takes too long."""
        end = time.monotonic() + seconds
        while not met(self):
            if time.monotonic() > end:
                shown = self.show()
                output = Path(shown.get("StdOut", ""))
                last = output.read_text(errors="replace")[-2000:] if output.is_file() else "nothing"
                nodes = self.cluster.ask("sinfo", "-N", "-o", "%N %T %E")
                raise TimeoutError(f"job {self.number} said last:\n{last}\n{shown}\n{nodes}")
            time.sleep(0.2)

    def ended(self, seconds: float = 300) -> str:
        """Its final state."""
        final = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY")
        self.until(lambda job: job.state in final, seconds)
        return self.state

    def at_step(self, step: int, seconds: float = 300) -> None:
        def there(job: Job) -> bool:
            return (job.run / "status.json").is_file() and job.status().entry.step >= step

        self.until(there, seconds)


@dataclass
class Cluster:
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def ask(self, *command: object, **more: Any) -> str:
        words = [str(word) for word in command]
        return subprocess.run(
            words, capture_output=True, text=True, check=True, env=self.environment, timeout=60, **more
        ).stdout

    def submit(self, folder: Path, *words: object, **environment: str) -> Job:
        """sbatch WORDS from `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        ended = subprocess.run(
            ["sbatch", *map(str, words)],
            capture_output=True,
            text=True,
            cwd=folder,
            env={**self.environment, **environment},
        )
        assert ended.returncode == 0, ended.stderr
        found = re.search(r"Submitted batch job (\d+)", ended.stdout)
        assert found
        return Job(self, found[1], folder)

    def power(self, node: str, *, on: bool) -> None:
        path = self.folder / "up" / node
        path.touch() if on else path.unlink()

    def node_state(self, node: str) -> str:
        return self.ask("sinfo", "-h", "-N", "-n", node, "-o", "%T").split()[0]


def start_cluster(scripts: Path, folder: Path, *, nodes: int) -> tuple[Cluster | None, str]:
    """A cluster, or why there can be none."""
    if os.geteuid() != 0:
        return None, "a private Slurm needs root"
    if shutil.which("unshare") is None:
        return None, "a private Slurm needs unshare (util-linux)"
    settings = {"NODES": str(nodes), "PARTS": "gpu urgent", "CPUS": "16", "GPUS": "4"}
    # A folder that others may enter, and a short name: munge and Slurm ask for both.
    started = subprocess.run(
        ["bash", scripts / "start_cluster.sh", folder],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **settings},
    )
    if started.returncode != 0:
        return None, f"no private Slurm here: {started.stderr.strip()[-300:]}"
    environment = {
        **os.environ,
        "SLURM_CONF": str(folder / "slurm.conf"),
        "PAL_DIST_PYTHON": sys.executable,
        "OMP_NUM_THREADS": "1",
    }
    return Cluster(folder, environment), ""


def stop_cluster(scripts: Path, folder: Path) -> None:
    subprocess.run(["bash", scripts / "stop_cluster.sh", folder], check=True, timeout=60)
    shutil.rmtree(folder, ignore_errors=True)
