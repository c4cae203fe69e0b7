"""What the watchdog says and with which code, where the other rank is lost, gives up, hangs or is done.

(Real ranks that are killed, stopped or hang: tests/ranks/test_together.py.)
"""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from torch.distributed import HashStore

from pal_dist.distributed import watchdog
from pal_dist.distributed.watchdog import HUNG, LOST, Watchdog


class ProcessEndedError(Exception):
    """In place of the end of the process."""


@pytest.fixture
def rank_0(monkeypatch: pytest.MonkeyPatch) -> Watchdog:
    """Of two ranks, with no thread: the test looks by hand."""

    def end(code: int, reason: str) -> None:
        raise ProcessEndedError(code, reason)

    monkeypatch.setattr(watchdog, "exit_process", end)
    monkeypatch.setattr(watchdog, "TICK_SECONDS", 0.0)
    monkeypatch.setattr(Watchdog, "start", lambda self: None)
    return Watchdog(HashStore(), 0, 2, hang_seconds=60)


def end_of(dog: Watchdog) -> tuple[Any, ...]:
    with pytest.raises(ProcessEndedError) as ended:
        dog._check_other_ranks()
    return ended.value.args


def test_a_rank_that_beats_is_fine(rank_0: Watchdog) -> None:
    rank_0.store.set("beat/1", json.dumps([1, "in step 4"]))
    rank_0._check_other_ranks()


def test_a_silent_rank_is_lost(rank_0: Watchdog, monkeypatch: pytest.MonkeyPatch) -> None:
    rank_0.store.set("beat/1", json.dumps([1, "in step 4"]))
    rank_0._check_other_ranks()
    monkeypatch.setattr(watchdog, "LOST_SECONDS", -1.0)
    assert end_of(rank_0) == (LOST, "rank 0, starting: rank 1 is gone; it was last seen in step 4")


def test_a_rank_that_is_done_is_not_lost(rank_0: Watchdog, monkeypatch: pytest.MonkeyPatch) -> None:
    rank_0.store.set("beat/1", json.dumps([-1, "done"]))
    monkeypatch.setattr(watchdog, "LOST_SECONDS", -1.0)
    rank_0._check_other_ranks()


def test_an_abort_is_followed(rank_0: Watchdog) -> None:
    rank_0.store.set("abort", json.dumps([1, 3, "out of memory"]))
    assert end_of(rank_0) == (3, "rank 0 stops, because rank 1 does: out of memory")


def test_a_hang_names_what_every_rank_does(rank_0: Watchdog) -> None:
    rank_0.store.set("beat/1", json.dumps([1, "saving after step 4"]))
    rank_0.doing, rank_0.last_progress = "in step 5", time.monotonic() - 61
    assert end_of(rank_0) == (HUNG, "rank 0 in step 5 has not moved for 60 s; rank 1 saving after step 4")
