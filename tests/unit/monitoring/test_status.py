"""A run seen from its folder alone: after every kind of end, and when nobody knows."""

from __future__ import annotations

import json
import math
import re
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from pal_dist.cli import main
from pal_dist.commands.train import train
from pal_dist.core.errors import DoesNotFitError, StoppedError, UserError
from pal_dist.monitoring import run_files
from pal_dist.monitoring.status import SILENT_SECONDS, runs_below, status_of
from pal_dist.monitoring.status_file import StatusFile, read_status
from tests.support.written_runs import STEPS


@pytest.fixture
def finished(runs: Path) -> Path:
    return runs / "round_robin_0"


def rewrite_status(folder: Path, **changes: object) -> None:
    """As if this process had written it."""
    own = asdict(StatusFile(folder, STEPS, STEPS, {}).entry)
    entry = read_status(folder)
    assert entry is not None
    changes = {name: own[name] for name in ("host", "pid", "born")} | changes
    (folder / run_files.STATUS).write_text(json.dumps(asdict(replace(entry, **changes))))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "state", "code"),
    [
        (StoppedError("stopped before step 4, as asked"), "stopped", 75),
        (UserError("the loss is no longer finite"), "failed", 2),
        (DoesNotFitError("out of memory in the optimizer's update"), "failed", 3),
        (KeyboardInterrupt(), "failed", 130),
        (ZeroDivisionError("a bug of ours"), "failed", 1),
    ],
)
def test_how_it_ended(
    error: BaseException,
    state: str,
    code: int,
    tiny_run,
    cache_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fit(_: object) -> None:
        raise error

    monkeypatch.setattr("pal_dist.training.trainer.Trainer.fit", fit)
    with pytest.raises(type(error)):
        train(tiny_run(), {}, cache_dir=cache_dir)
    status = status_of(tmp_path / "run")
    assert (status.verdict, status.entry.exit_code) == (state, code)
    assert str(error) in status.entry.error
    assert status.text().count(f"(exit code {code})") == 1


def test_starts_are_counted(finished: Path) -> None:
    first = read_status(finished)
    assert first is not None
    StatusFile(finished, 6, 6, {"slurm_job": "7", "slurm_restarts": "1"})
    status = status_of(finished)
    assert status.entry.starts == 2
    assert status.entry.first_started == first.first_started
    assert "7, started again 1 times by Slurm" in status.text()


def test_a_process_that_is_no_more(finished: Path) -> None:
    rewrite_status(finished, state="training")
    assert status_of(finished).verdict == "training"
    rewrite_status(finished, state="training", born=1.0)  # another process has its number now
    status = status_of(finished)
    assert status.verdict == "gone"
    assert "ended without a message while training" in status.text()


def test_a_run_elsewhere(finished: Path) -> None:
    """Its process cannot be looked for; silence is judged by the run's own pace."""
    elsewhere = {"state": "training", "host": "n2", "step": 3, "total_steps": 600}
    rewrite_status(finished, **elsewhere)
    assert status_of(finished).verdict == "training"
    rewrite_status(finished, **elsewhere, updated=time.time() - 2 * SILENT_SECONDS)
    assert status_of(finished).verdict == "silent"
    slow = {
        "step": 3,
        "loss": {"sst": 1.0},
        "seconds_left": 597 * SILENT_SECONDS,
        "examples_per_second": 1.0,
        "tokens_per_second": 9.0,
        "memory_gib": 1.0,
    }
    (finished / run_files.METRICS).write_text(json.dumps(slow) + "\n" + '{"step": 4, "lo')
    assert status_of(finished).verdict == "training"


def test_folders_without_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / run_files.STATUS).write_text("{")
    for folder in (tmp_path / "odd", tmp_path / "none"):
        with pytest.raises(UserError):
            status_of(folder)
    with pytest.raises(UserError, match="neither a run's folder nor a folder of runs"):
        runs_below(tmp_path)
    with pytest.raises(SystemExit):
        main(["status", str(tmp_path / "none")])
    assert "there is no such folder" in capsys.readouterr().err


@pytest.mark.parametrize("number", ["NaN", "null"], ids=["as version 0.1.0 wrote it", "as today"])
def test_a_score_that_is_no_number(number: str, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = finished / run_files.METRICS
    metrics.write_text(re.sub(r'("pearson"|"dev_mean"|"sts"): [\d.]+', rf"\1: {number}", metrics.read_text()))
    status = status_of(finished)
    assert "sts pearson nan" in status.text()
    assert "sts nan" in status.text()
    assert math.isnan(status.dev["dev_mean"])
    main(["status", str(finished), "--json", "true"])
    text = capsys.readouterr().out
    assert "NaN" not in text, "strict JSON has none"
    assert json.loads(text)["dev"]["dev_mean"] is None
