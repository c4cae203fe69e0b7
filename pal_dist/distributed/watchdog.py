"""Notices that another rank is gone, that one of them gives up, or that nobody moves any more, and ends this process.

A thread of its own and a key-value store: it works while the main thread waits in a collective for ever.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from contextlib import suppress
from typing import Any

from pal_dist.core.errors import RankLostError
from pal_dist.core.exit_codes import exit_code_for_launcher

TICK_SECONDS = 0.5
LOST_SECONDS = 120.0
"""A process whose heart has not beaten for so long is gone. (It beats in a thread of its own, also while the process
computes; a library that holds the interpreter while it writes a large file over a slow network may stop it a while.)"""

PARTING_SECONDS = 15.0
"""How long rank 0, which may hold the store, stays for ranks that have not said that they are done."""

LOST, HUNG = RankLostError.exit_code, 71
"""Exit codes: another process is gone, or all of them wait for each other."""


class Watchdog(threading.Thread):
    """Ends this process with a reason where another rank is gone or aborts, or where nobody moves any more."""

    def __init__(self, store: Any, rank: int, ranks: int, hang_seconds: float):
        super().__init__(daemon=True, name="watchdog")
        self.store, self.rank, self.ranks, self.hang_seconds = store.clone(), rank, ranks, hang_seconds
        self.doing, self.last_progress = "starting", float("inf")  # reading the data may take as long as it takes
        self.stopped = threading.Event()
        self.heartbeats: dict[int, tuple[str, float]] = {}
        """Each other rank's last heartbeat, and when it was new."""
        self.start()

    def run(self) -> None:
        beat = 0
        while not self.stopped.wait(TICK_SECONDS):
            beat += 1
            try:
                self.store.set(f"beat/{self.rank}", json.dumps([beat, self.doing]))
                self._check_other_ranks()
            except (RuntimeError, OSError, ValueError) as error:
                if self.stopped.is_set() or self._last_heard(0) == "done":
                    return
                exit_process(
                    LOST, f"rank {self.rank}, {self.doing}: rank 0 is gone with the store ({first_line(error)})"
                )

    def _check_other_ranks(self) -> None:
        now = time.monotonic()
        if self.store.check(["abort"]):
            rank, code, reason = json.loads(self.store.get("abort"))
            if rank != self.rank:
                exit_process(code, f"rank {self.rank} stops, because rank {rank} does: {reason}")
        doing: dict[int, str] = {}
        for rank in range(self.ranks):
            if rank == self.rank:
                continue
            beaten = self.store.check([f"beat/{rank}"])
            text = self.store.get(f"beat/{rank}").decode() if beaten else '[0, "starting"]'
            if self.heartbeats.get(rank, ("", 0.0))[0] != text:
                self.heartbeats[rank] = text, now
            doing[rank] = self._last_heard(rank)
            if doing[rank] != "done" and now - self.heartbeats[rank][1] > LOST_SECONDS:
                exit_process(
                    LOST, f"rank {self.rank}, {self.doing}: rank {rank} is gone; it was last seen {doing[rank]}"
                )
        if now - self.last_progress > self.hang_seconds:
            others = "; ".join(f"rank {rank} {what}" for rank, what in doing.items())
            if self.rank == 0:  # which may hold the store
                time.sleep(4 * TICK_SECONDS)
            exit_process(HUNG, f"rank {self.rank} {self.doing} has not moved for {self.hang_seconds:.0f} s; {others}")

    def abort(self, code: int, reason: str) -> None:
        """Tell the other ranks to end with this exit code, and stop watching."""
        self.stopped.set()
        self.store.set("abort", json.dumps([self.rank, code, reason]))
        time.sleep(3 * TICK_SECONDS)  # rank 0 may hold the store: the others read it first

    def _last_heard(self, rank: int) -> str:
        """What the rank was doing at its last heartbeat that was heard."""
        return str(json.loads(self.heartbeats[rank][0])[1]) if rank in self.heartbeats else ""

    def stop(self) -> None:
        """Say that this rank is done. The others go on without it."""
        aborted = self.stopped.is_set()
        self.doing = "done"
        self.stopped.set()
        self.join()
        with suppress(RuntimeError, OSError):  # rank 0 may have left with the store
            self.store.set(f"beat/{self.rank}", json.dumps([-1, "done"]))
            until = time.monotonic() + PARTING_SECONDS
            while self.rank == 0 and not aborted and time.monotonic() < until and not self._others_are_done():
                time.sleep(TICK_SECONDS / 10)

    def _others_are_done(self) -> bool:
        others = (f"beat/{rank}" for rank in range(1, self.ranks))
        return all(self.store.check([key]) and b'"done"' in self.store.get(key) for key in others)


def exit_process(code: int, reason: str) -> None:
    """Leave at once, from any thread: the main one may wait in a collective for ever."""
    print(f"pal-dist: {reason}", file=sys.stderr, flush=True)  # noqa: T201 (the report may be waiting too)
    os._exit(exit_code_for_launcher(code, os.environ.get("PAL_DIST_EXIT_FILE")) or code)


def first_line(error: BaseException) -> str:
    return str(error).split("\n")[0][:120]
