"""`status.json` in a run's folder: what the run is doing now, or how it ended, for whoever looks from outside."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import psutil

from pal_dist.core.atomic_io import write_json
from pal_dist.core.errors import StoppedError, UserError
from pal_dist.monitoring import run_files

LEAST_SECONDS = 2.0
"""Between two entries that say the same of another step: a shared file system need not hear every one."""


@dataclass(frozen=True)
class StatusEntry:
    """One run at one moment, as rank 0 wrote it."""

    state: str
    """starting, training, evaluating, saving; or how it ended: finished, stopped (the same command resumes it) or
    failed."""
    step: int
    total_steps: int
    starts: int
    """How often the run was started, the first time included."""
    first_started: float
    """Seconds since 1970, as all times here."""
    updated: float
    host: str
    pid: int
    born: float
    """When that process was created: a later process may have its number."""
    job: Mapping[str, str] = field(default_factory=dict)
    error: str = ""
    exit_code: int = 0


def read_status(folder: Path) -> StatusEntry | None:
    """The newest entry; None where no run has begun, or a later version has written something else."""
    try:
        values = json.loads((folder / run_files.STATUS).read_text(encoding="utf-8"))
        return StatusEntry(**{each.name: values[each.name] for each in fields(StatusEntry)})
    except (OSError, ValueError, KeyError, TypeError):
        return None


class StatusFile:
    """Kept by rank 0."""

    def __init__(self, folder: Path, step: int, total_steps: int, job: Mapping[str, str]):
        before, now, process = read_status(folder), time.time(), psutil.Process()
        self.folder = folder
        self.entry = StatusEntry(
            "starting",
            step,
            total_steps,
            1 + (before.starts if before else 0),
            before.first_started if before else now,
            now,
            socket.gethostname(),
            os.getpid(),
            process.create_time(),
            dict(job),
        )
        write_json(folder / run_files.STATUS, asdict(self.entry))

    def write(self, state: str, step: int, *, error: str = "", exit_code: int = 0) -> None:
        before, now = self.entry, time.time()
        if state == before.state and now - before.updated < LEAST_SECONDS:
            return
        changed = {"state": state, "step": step, "updated": now, "error": error, "exit_code": exit_code}
        self.entry = StatusEntry(**{**asdict(before), **changed})
        write_json(self.folder / run_files.STATUS, asdict(self.entry))

    def ended(self, error: BaseException) -> None:
        """The run ends by this."""
        reason, code = f"{type(error).__name__}: {error}", 1
        if isinstance(error, UserError):
            reason, code = str(error), error.exit_code
        elif isinstance(error, KeyboardInterrupt):
            reason, code = "interrupted", 130
        state = "stopped" if isinstance(error, StoppedError) else "failed"
        with suppress(UserError):  # a full disk is most likely what ended the run
            self.write(state, self.entry.step, error=reason, exit_code=code)
