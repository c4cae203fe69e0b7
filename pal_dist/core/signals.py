"""Signals that ask a run to stop: what batch systems, preempted nodes and closed terminals send."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from pal_dist.core.errors import StoppedError

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
"""A preempted node's TERM, Slurm's --signal=USR1@120, a terminal that is closed."""

Handler = Callable[[int, FrameType | None], None]


@contextmanager
def listening(handler: Handler) -> Iterator[None]:
    """Within, the handler hears these signals; not in a thread of somebody's notebook, where Python does not allow it.

    A signal that is ignored stays so: under nohup a closed terminal is no reason to stop.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def stop_at_once(number: int, _frame: FrameType | None) -> None:
    """For the time in which there is nothing to save. Raises StoppedError."""
    raise StoppedError(
        f"stopped outside of training, as asked ({signal.Signals(number).name}); what was saved before is whole: run "
        f"the same command again"
    )
