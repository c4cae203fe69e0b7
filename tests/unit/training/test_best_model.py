"""Which model of a run is kept, where a task's score cannot always be told (NaN)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pal_dist.cli import main
from pal_dist.monitoring.report import Report
from pal_dist.tasks.registry import TASKS
from pal_dist.training.best_model import BestModel
from pal_dist.training.run_state import RunState
from tests.support.command_line import tiny_training


class Kept(BestModel):
    """Remembers what would have been written, and at which step."""

    def __init__(self, tasks: tuple[str, ...], keep_best: str = "mean"):
        labels = SimpleNamespace(labels=np.array([3.0, 3.0]))
        run: Any = SimpleNamespace(
            config=SimpleNamespace(train=SimpleNamespace(keep_best=keep_best)),
            state=RunState(),
            tasks=tuple(TASKS[name] for name in tasks),
            report=Report(),
            corpora=SimpleNamespace(dev=dict.fromkeys(tasks, labels)),
        )
        super().__init__(run)
        self.steps: dict[str, int] = {}
        self.unchanged: tuple[str, ...] = ()

    def _save(self, name: str, metrics: Any, unchanged: Any = ()) -> None:
        self.steps[name], self.unchanged = self.run.state.step, tuple(unchanged)

    def after(self, *evaluations: dict[str, float]) -> dict[str, int]:
        for number, scores in enumerate(evaluations, 1):
            self.run.state.step = number
            self.update({name: {TASKS[name].metric: value} for name, value in scores.items()})
        return self.steps


def test_a_score_that_cannot_be_told_chooses_nothing() -> None:
    """With the NaN in the mean, the first would be kept whatever `sst` does."""
    kept = Kept(("sst", "sts"))
    scores = [{"sst": value, "sts": math.nan} for value in (0.3, 0.5, 0.4)]
    assert kept.after(*scores) == {"model": 2}
    assert kept.run.state.best_mean == 0.5
    assert kept.run.state.evaluations_without_better == 1


def test_where_more_can_be_told_the_model_is_better() -> None:
    """A mean over other tasks is no measure."""
    told = {"sst": 0.1, "sts": 0.2}
    kept = Kept(("sst", "sts"))
    assert kept.after({"sst": 0.9, "sts": math.nan}, told, {"sst": 0.9, "sts": math.nan}) == {"model": 2}
    assert kept.run.state.best_mean == pytest.approx(0.15)


def test_where_nothing_can_be_told_the_newest_is_kept() -> None:
    """As without a dev split."""
    assert Kept(("sts",)).after({"sts": math.nan}, {"sts": math.nan}) == {"model": 2}
    assert Kept(("sst",)).after({}, {}, {}) == {"model": 3}
    kept = Kept(("sts",))
    assert kept.after({"sts": math.nan}, {"sts": 0.1}, {"sts": math.nan}) == {"model": 2}


@pytest.mark.parametrize(
    ("keep_best", "steps"), [("each", {"model": 2, "best/sst": 2, "best/sts": 3}), ("parts", {"model": 3})]
)
def test_each_task_alone(keep_best: str, steps: dict[str, int]) -> None:
    kept = Kept(("sst", "sts"), keep_best)
    assert kept.after(*({"sst": value, "sts": math.nan} for value in (0.3, 0.5, 0.4))) == steps
    if keep_best == "parts":
        assert kept.unchanged == ("sst",)
        assert kept.run.state.best_mean == 0.5


def test_constant_labels_from_file_to_results(
    tiny_bert: Path, small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Strict JSON, with the reason in words; the task's headline metric is its objective's own."""
    (tmp_path / "co.csv").write_text("a,s\ngood film,3\nbad film,3\nlong film,3\n")
    task = tmp_path / "co.yaml"
    task.write_text("name: co\nfiles: {train: co.csv, dev: co.csv}\ntext_a: a\nlabel: s\nobjective: {score: [0, 5]}\n")
    main([str(word) for word in [*tiny_training(tiny_bert, small_data, tmp_path), "--tasks", task]])
    reason = "all 3 labels are 3; a correlation needs labels that differ"
    assert reason in capsys.readouterr().err

    def refuse(name: str) -> float:
        raise AssertionError(f"{name} is no JSON")

    results = json.loads((tmp_path / "run" / "results.json").read_text(), parse_constant=refuse)
    assert results["dev"] == {"co": {"pearson": None, "spearman": None}}
    assert (results["dev_mean"], results["untold"]) == (None, {"co": reason})
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    (entry,) = (entry for entry in (json.loads(line, parse_constant=refuse) for line in lines) if "dev" in entry)
    assert (entry["dev_mean"], entry["untold"]) == (None, {"co": reason})
    main(["evaluate", str(tmp_path / "run")])
    shown = capsys.readouterr()
    assert reason in shown.err
    assert json.loads(shown.out) == {"dev": {"co": {"pearson": None, "spearman": None}}}
    main(["status", str(tmp_path / "run")])
    assert "co pearson nan" in capsys.readouterr().out
