"""A run seen from its folder alone: while it runs, after every kind of end, and when nobody knows."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from pal_dist.cli import main
from pal_dist.commands.train import train
from pal_dist.core.errors import DoesNotFitError, StoppedError, UserError
from pal_dist.monitoring.run_files import STATUS
from pal_dist.monitoring.status import SILENT_SECONDS, runs_below, status_of
from pal_dist.monitoring.status_file import StatusEntry, StatusFile, read_status
from pal_dist.training.setup import set_up
from pal_dist.training.trainer import Trainer


def rewrite(folder: Path, **changes: object) -> None:
    entry = read_status(folder)
    assert entry is not None
    (folder / STATUS).write_text(json.dumps(asdict(replace(entry, **changes))))  # type: ignore[arg-type]


@pytest.fixture
def finished(tiny_run, cache_dir: Path, tmp_path: Path) -> Path:
    train(tiny_run(), {}, cache_dir=cache_dir)
    return tmp_path / "run"


def test_a_finished_run(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = status_of(finished)
    results = json.loads((finished / "results.json").read_text())
    assert found.verdict == "finished"
    assert (found.entry.step, found.entry.total_steps, found.entry.starts) == (6, 6, 1)
    assert found.dev["dev_mean"] == results["dev_mean"]
    main(["status", str(finished)])
    said = capsys.readouterr().out
    for words in ("state", "finished", "6 of 6 (100%)", "examples/s", "GiB", f"mean {results['dev_mean']:.4f}"):
        assert words in said
    assert "left" not in said
    main(["status", str(finished), "--json", "true"])
    assert json.loads(capsys.readouterr().out)["verdict"] == "finished"
    main(["status", str(finished.parent)])
    assert "6/6" in capsys.readouterr().out


def test_while_it_runs(tiny_run, cache_dir: Path, tmp_path: Path) -> None:
    """What is seen from outside at each step is what the trainer knows inside."""
    trainer = Trainer(set_up(tiny_run(log_every=1, evaluate_every="3"), {}, cache_dir=cache_dir))
    folder = tmp_path / "run"
    assert status_of(folder).verdict == "starting"
    seen = []
    honest = trainer.step

    def step(served):  # type: ignore[no-untyped-def]
        found = status_of(folder)
        seen.append((found.verdict, trainer.state.step - found.entry.step))
        return honest(served)

    trainer.step = step  # type: ignore[method-assign]
    trainer.fit()
    trainer.run.report.close()
    assert {verdict for verdict, _ in seen} <= {"starting", "training", "evaluating", "saving"}
    assert all(0 <= behind <= 3 for _, behind in seen)


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
    found = status_of(tmp_path / "run")
    assert (found.verdict, found.entry.exit_code) == (state, code)
    assert str(error) in found.entry.error
    assert found.text().count(f"(exit code {code})") == 1


def test_starts_are_counted(finished: Path) -> None:
    first = read_status(finished)
    assert first is not None
    StatusFile(finished, 6, 6, {"slurm_job": "7", "slurm_restarts": "1"})
    found = status_of(finished)
    assert found.entry.starts == 2
    assert found.entry.first_started == first.first_started
    assert "7, started again 1 times by Slurm" in found.text()


def test_a_process_that_is_no_more(finished: Path) -> None:
    rewrite(finished, state="training")
    assert status_of(finished).verdict == "training"
    rewrite(finished, state="training", born=1.0)  # another process has its number now
    found = status_of(finished)
    assert found.verdict == "gone"
    assert "ended without a word while training" in found.text()


def test_a_run_elsewhere(finished: Path) -> None:
    """Its process cannot be looked for; silence is judged by the run's own pace."""
    elsewhere = {"state": "training", "host": "n2", "step": 3, "total_steps": 600}
    rewrite(finished, **elsewhere)
    assert status_of(finished).verdict == "training"
    rewrite(finished, **elsewhere, updated=time.time() - 2 * SILENT_SECONDS)
    assert status_of(finished).verdict == "silent"
    slow = {
        "step": 3,
        "loss": {"sst": 1.0},
        "seconds_left": 597 * SILENT_SECONDS,
        "examples_per_second": 1.0,
        "tokens_per_second": 9.0,
        "memory_gib": 1.0,
    }
    (finished / "metrics.jsonl").write_text(json.dumps(slow) + "\n" + '{"step": 4, "lo')
    assert status_of(finished).verdict == "training"


def test_folders_without_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / STATUS).write_text("{")
    for folder in (tmp_path / "odd", tmp_path / "none"):
        with pytest.raises(UserError):
            status_of(folder)
    with pytest.raises(UserError, match="neither a run's folder nor a folder of runs"):
        runs_below(tmp_path)
    with pytest.raises(SystemExit):
        main(["status", str(tmp_path / "none")])
    assert "there is no such folder" in capsys.readouterr().err


def test_entries_are_whole_or_old(tmp_path: Path) -> None:
    book = StatusFile(tmp_path, 0, 9, {})
    for step in range(5):
        book.write("training", step)
        assert isinstance(read_status(tmp_path), StatusEntry)
    assert not [path for path in tmp_path.iterdir() if path.name != STATUS]
    assert read_status(tmp_path) is not None
    assert book.entry.pid == os.getpid()
