"""When a run should save itself, and when it should stop: signals, a flag file, steps, minutes."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from types import FrameType, TracebackType

GO, SAVE, STOP = 0, 1, 2
"""What a rank wishes for before a step; the highest wish of all ranks is granted."""

STOP_FILE = "stop"
"""A file of this name in a run's folder stops the run."""

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""What batch systems send before they kill: Slurm's --signal=USR1@120, a preempted node's TERM."""


class Preemption:
    """Keeps in mind what was asked for until the step's boundary, where all ranks agree on it."""

    def __init__(self, folder: Path, save_every: str):
        self.flag, self.reason = folder / STOP_FILE, ""
        self.every_steps = int(save_every) if save_every.isdigit() else 0
        self.every_seconds = 60.0 * int(save_every[:-1]) if save_every.endswith("m") else 0.0
        self.saved()

    def saved(self) -> None:
        """A checkpoint was written just now."""
        self.last = time.monotonic()

    def request(self) -> int:
        if not self.reason and self.flag.exists():
            self.reason = f"the file {self.flag}"
        if self.reason:
            return STOP
        return SAVE if self.every_seconds and time.monotonic() - self.last > self.every_seconds else GO

    def granted(self) -> None:
        """All ranks have seen the request and the checkpoint is written: the flag has done its work. A flag that is
        there when a run starts was put there meanwhile, by a signal that came while the processes were starting."""
        self.flag.unlink(missing_ok=True)

    def __enter__(self) -> Preemption:
        """Listen to the signals; not in a thread of somebody's notebook, where Python does not allow it."""
        self.before = {}
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._hear) for number in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        self.reason = signal.Signals(number).name
