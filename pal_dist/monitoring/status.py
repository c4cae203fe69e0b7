"""The verb `status`: how a run does, from its folder alone, while it runs and after."""

from __future__ import annotations

import socket
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from pal_dist.core.atomic_io import to_json
from pal_dist.core.console import duration, say, table
from pal_dist.core.errors import UserError
from pal_dist.monitoring import run_files
from pal_dist.monitoring.status_file import StatusEntry, read_status

RESUME = "run the same command again to resume"

ENDED = ("finished", "stopped", "failed")

SILENT_SECONDS = 300.0
"""A run on another machine that has written nothing for so long, and for ten times its usual pause, may be dead. On
this machine its process is looked for instead."""


@dataclass(frozen=True)
class Status:
    """What a folder says of its run."""

    folder: Path
    entry: StatusEntry
    verdict: str
    """The entry's state; `gone` where its process is no more, `silent` where that can only be guessed."""
    silent_seconds: float
    logged: dict[str, Any] = field(default_factory=dict)
    """The newest training entry of metrics.jsonl: losses, rates, memory, seconds left."""
    dev: dict[str, Any] = field(default_factory=dict)
    """The newest evaluation."""

    def json(self) -> str:
        return to_json({**asdict(self), "folder": str(self.folder)})

    def text(self) -> str:
        entry, rows = self.entry, []
        rows.append(["state", self._state()])
        rows.append(["step", f"{entry.step:,} of {entry.total_steps:,} ({entry.step / entry.total_steps:.0%})"])
        if self.logged:
            logged = self.logged
            losses = "  ".join(f"{task} {value:.3f}" for task, value in logged["loss"].items())
            rows += [
                ["loss", losses],
                [
                    "rate",
                    f"{logged['examples_per_second']:,.1f} examples/s, {logged['tokens_per_second']:,.0f} tokens/s",
                ],
                ["memory", f"{logged['memory_gib']:.2f} GiB"],
            ]
            if self.verdict not in ENDED:
                rows.append(["left", f"{duration(logged['seconds_left'])} of training"])
        if self.dev:
            scores = "  ".join(
                f"{task} {name} {self.dev['dev'][task][name]:.4f}" for task, name in self.dev["headline"].items()
            )
            rows.append(["dev", f"{scores}  (mean {self.dev['dev_mean']:.4f}, step {self.dev['step']:,})"])
        rows.append(["starts", f"{entry.starts}, the first {_ago(entry.first_started)}"])
        if entry.job:
            rows.append(
                ["job", f"{entry.job['slurm_job']}, started again {entry.job['slurm_restarts']} times by Slurm"]
            )
        rows.append(["where", f"{entry.host}, process {entry.pid}"])
        if entry.error:
            rows.append(["message", f"{entry.error} (exit code {entry.exit_code})"])
        width = max(len(name) for name, _ in rows)
        return "\n".join([str(self.folder), *(f"  {name.ljust(width)}  {value}" for name, value in rows)])

    def _state(self) -> str:
        seen = _ago(self.entry.updated)
        if self.verdict == "gone":
            doing = self.entry.state
            return f"gone: its process ended without a message while {doing}, last seen {seen}; {RESUME}"
        if self.verdict == "silent":
            return f"silent: last seen {self.entry.state} {seen}; killed, or hung"
        cure = {"stopped": f"; {RESUME}", "failed": "; the message is below"}.get(self.verdict, "")
        return f"{self.verdict}, {seen}{cure}"


def _ago(moment: float) -> str:
    return f"{duration(max(0.0, time.time() - moment))} ago"


def status_of(folder: Path) -> Status:
    """Raises UserError where there is no run in the folder."""
    entry = read_status(folder)
    if entry is None:
        if not folder.is_dir():
            raise UserError(f"{folder}: there is no such folder")
        raise UserError(
            f"{folder}: expected a run's folder, found none ({run_files.STATUS} is missing or not readable)"
        )
    logged, dev, steps = _newest_entries(folder)
    pause = steps * logged["seconds_left"] / max(1, entry.total_steps - logged["step"]) if logged else 0.0
    return Status(folder, entry, _verdict(entry, pause), time.time() - entry.updated, logged, dev)


def _verdict(entry: StatusEntry, pause: float) -> str:
    """`pause`: usual seconds between two entries."""
    if entry.state in ENDED:
        return entry.state
    if entry.host == socket.gethostname():
        try:
            alive = abs(psutil.Process(entry.pid).create_time() - entry.born) < 1
        except psutil.NoSuchProcess:
            alive = False
        return entry.state if alive else "gone"
    return "silent" if time.time() - entry.updated > max(SILENT_SECONDS, 10 * pause) else entry.state


def _newest_entries(folder: Path) -> tuple[dict[str, Any], dict[str, Any], int]:
    """(newest training entry, newest evaluation, steps between the last two training entries)."""
    logged: dict[str, Any] = {}
    dev: dict[str, Any] = {}
    steps = 0
    for entry in run_files.read_metrics(folder):
        if "dev" in entry:
            dev = entry
        else:
            steps, logged = entry["step"] - logged.get("step", 0), entry
    return logged, dev, steps


def runs_below(folder: Path) -> list[Status]:
    """The runs in a folder, newest first. Raises UserError where there is none."""
    files = sorted(folder.glob(f"*/{run_files.STATUS}"), key=lambda path: path.stat().st_mtime, reverse=True)
    runs = [status_of(path.parent) for path in files if read_status(path.parent) is not None]
    if not runs:
        raise UserError(f"{folder}: neither a run's folder nor a folder of runs")
    return runs


def runs_table(runs: list[Status]) -> str:
    rows = []
    for run in runs:
        entry, logged = run.entry, run.logged
        rows.append(
            [
                run.folder.name,
                run.verdict,
                f"{entry.step:,}/{entry.total_steps:,}",
                f"{run.dev['dev_mean']:.4f}" if run.dev else "",
                f"{logged['examples_per_second']:.1f}" if logged else "",
                f"{logged['memory_gib']:.2f}" if logged else "",
                duration(logged["seconds_left"]) if logged and run.verdict not in ENDED else "",
                str(entry.starts),
                (entry.error.split("\n")[0][:60]),
            ]
        )
    header = ["run", "state", "step", "dev mean", "examples/s", "GiB", "left", "starts", "message"]
    return table(header, rows)


def newest_model(folder: Path) -> Path:
    """The run below `folder` whose model was kept last; which one is said. Raises UserError where there is none."""
    runs = sorted(folder.glob(f"*/{run_files.MODEL}/config.json"), key=lambda path: path.stat().st_mtime)
    if not runs:
        raise UserError(f"name a run: pal-dist evaluate RUN (there is no finished run under ./{folder})")
    say(f"using the newest run, {runs[-1].parent.parent}")
    return runs[-1].parent.parent
