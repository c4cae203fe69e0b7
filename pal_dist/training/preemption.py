"""When a run should save itself, and when it should stop: signals, a flag file, steps, minutes."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from types import FrameType, TracebackType

from pal_dist.monitoring import run_files

CONTINUE, SAVE, STOP = 0, 1, 2
"""What a rank requests before a step; the highest request of all ranks is granted."""

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""What batch systems send before they kill: Slurm's --signal=USR1@120, a preempted node's TERM."""


class Preemption:
    """Remembers what was asked for until the step's boundary, where all ranks agree on it."""

    def __init__(self, folder: Path, save_every: str):
        self.stop_file, self.reason = folder / run_files.STOP, ""
        self.steps_between_saves = int(save_every) if save_every.isdigit() else 0
        self.seconds_between_saves = 60.0 * int(save_every[:-1]) if save_every.endswith("m") else 0.0
        self.saved()

    def saved(self) -> None:
        """A checkpoint was written just now."""
        self.last_save = time.monotonic()

    def save_due(self, step: int) -> bool:
        """Whether --save_every asks for a checkpoint after so many steps."""
        return self.steps_between_saves > 0 and step % self.steps_between_saves == 0

    def request(self) -> int:
        """What this rank requests now: CONTINUE, SAVE or STOP."""
        if not self.reason and self.stop_file.exists():
            self.reason = f"the file {self.stop_file}"
        if self.reason:
            return STOP
        overdue = self.seconds_between_saves and time.monotonic() - self.last_save > self.seconds_between_saves
        return SAVE if overdue else CONTINUE

    def acknowledge(self) -> None:
        """All ranks have seen the request and the checkpoint is written: the file has done its work. One that is there
        when a run starts was put there meanwhile, by a signal that came while the processes were starting."""
        self.stop_file.unlink(missing_ok=True)

    def __enter__(self) -> Preemption:
        """Listen to the signals; not in a thread of somebody's notebook, where Python does not allow it."""
        self.previous_handlers = {}
        if threading.current_thread() is threading.main_thread():
            self.previous_handlers = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self.previous_handlers.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self.reason = signal.Signals(number).name
