"""A run that is trained, seen from its folder alone: while it runs, and when it has finished."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pal_dist.cli import main
from pal_dist.commands.train import train
from pal_dist.monitoring import run_files
from pal_dist.monitoring.status import status_of
from pal_dist.training.setup import set_up
from pal_dist.training.trainer import Trainer


@pytest.fixture
def finished(tiny_run, cache_dir: Path, tmp_path: Path) -> Path:
    train(tiny_run(), {}, cache_dir=cache_dir)
    return tmp_path / "run"


def test_a_finished_run(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = status_of(finished)
    results = json.loads((finished / run_files.RESULTS).read_text())
    assert status.verdict == "finished"
    assert (status.entry.step, status.entry.total_steps, status.entry.starts) == (6, 6, 1)
    assert status.dev["dev_mean"] == results["dev_mean"]
    main(["status", str(finished)])
    output = capsys.readouterr().out
    for text in ("state", "finished", "6 of 6 (100%)", "examples/s", "GiB", f"mean {results['dev_mean']:.4f}"):
        assert text in output
    assert "left" not in output
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
        status = status_of(folder)
        seen.append((status.verdict, trainer.state.step - status.entry.step))
        return honest(served)

    trainer.step = step  # type: ignore[method-assign]
    trainer.fit()
    trainer.run.report.close()
    assert {verdict for verdict, _ in seen} <= {"starting", "training", "evaluating", "saving"}
    assert all(0 <= behind <= 3 for _, behind in seen)
