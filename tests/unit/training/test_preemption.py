"""When a run saves itself and when it stops: a file, a signal, steps, minutes."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from pal_dist.monitoring import run_files
from pal_dist.training.preemption import CONTINUE, SAVE, STOP, Preemption


def test_nothing_was_asked_for(tmp_path: Path) -> None:
    preemption = Preemption(tmp_path, "evaluation")
    assert preemption.request() == CONTINUE
    assert not preemption.save_due(100)


def test_a_file_stops_the_run_until_it_has_done_its_work(tmp_path: Path) -> None:
    preemption = Preemption(tmp_path, "evaluation")
    (tmp_path / run_files.STOP).touch()
    assert preemption.request() == STOP
    preemption.acknowledge()
    assert not (tmp_path / run_files.STOP).exists()
    assert str(tmp_path / run_files.STOP) in preemption.reason


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_remembered_and_the_handlers_go_back(number: signal.Signals, tmp_path: Path) -> None:
    before = signal.getsignal(number)
    with Preemption(tmp_path, "evaluation") as preemption:
        assert preemption.request() == CONTINUE
        os.kill(os.getpid(), number)
        assert preemption.request() == STOP
        assert preemption.reason == number.name
    assert signal.getsignal(number) == before


def test_every_so_many_steps(tmp_path: Path) -> None:
    preemption = Preemption(tmp_path, "3")
    assert [step for step in range(1, 10) if preemption.save_due(step)] == [3, 6, 9]


def test_every_so_many_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    preemption = Preemption(tmp_path, "15m")
    assert preemption.request() == CONTINUE
    monkeypatch.setattr(time, "monotonic", lambda: now + 15 * 60 + 1)
    assert preemption.request() == SAVE
    preemption.saved()
    assert preemption.request() == CONTINUE
