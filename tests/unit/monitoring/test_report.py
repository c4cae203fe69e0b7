"""What a run writes for people and programs; pictures are drawn where their library is, and missed aloud where not."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pal_dist.monitoring import run_files
from pal_dist.monitoring.report import RunReport
from pal_dist.monitoring.run_files import read_metrics
from tests.support.hidden_libraries import hide_libraries

ENTRY = {
    "loss": {"sst": 1.25},
    "learning_rate": 1e-3,
    "gradient_norm": 2.0,
    "examples_per_second": 9.0,
    "tokens_per_second": 90.0,
    "useful_token_share": 0.9,
    "memory_gib": 1.5,
    "seconds_left": 61.0,
}


def write_a_run(folder: Path, *, step: int = 0) -> None:
    run = RunReport(folder, step=step, total_steps=4, job={})
    for number in range(step + 1, 5):
        run.progress(number, 4, ENTRY)
    run.confusion(4, "sst", np.array([[3, 1], [0, 4]]))
    run.cosines(4, ["sst", "sts"], [[1.0, -0.5], [-0.5, 1.0]])
    run.evaluation(4, {"sst": {"f1": 0.5, "accuracy": 0.25}}, 0.25, headline={"sst": "accuracy"})
    run.set_state("finished", 4)
    run.close()


def images_of(folder: Path) -> set[str]:
    events = EventAccumulator(str(folder / run_files.TENSORBOARD))
    events.Reload()
    return set(events.Tags()["images"])


def test_what_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_a_run(tmp_path)
    entries = list(read_metrics(tmp_path))
    assert [entry["step"] for entry in entries] == [1, 2, 3, 4, 4]
    assert entries[-1]["headline"] == {"sst": "accuracy"}
    assert entries[-1]["confusion"] == {"sst": [[3, 1], [0, 4]]}
    assert images_of(tmp_path) == {"confusion/sst", "task_cosines"}
    lines = capsys.readouterr().err
    assert "memory 1.50 GiB  left 1:01" in lines
    assert "dev mean 0.2500   sst accuracy 0.2500" in lines, "the headline, wherever it stands"


def test_what_was_logged_after_the_resumed_step_is_dropped(tmp_path: Path) -> None:
    write_a_run(tmp_path)
    with open(tmp_path / run_files.METRICS, "a", encoding="utf-8") as file:
        file.write('{"step": 4, "lo')  # a crash cut it short
    RunReport(tmp_path, step=2, total_steps=4, job={}).close()
    assert [entry["step"] for entry in read_metrics(tmp_path)] == [1, 2]


def test_no_number_is_null_in_the_file_and_nan_when_read(tmp_path: Path) -> None:
    run = RunReport(tmp_path, step=0, total_steps=4, job={})
    run.evaluation(1, {"sts": {"pearson": math.nan}}, math.nan, headline={"sts": "pearson"})
    run.close()
    text = (tmp_path / run_files.METRICS).read_text()
    assert json.loads(text)["dev"] == {"sts": {"pearson": None}}
    (entry,) = read_metrics(tmp_path)
    assert math.isnan(entry["dev"]["sts"]["pearson"])
    assert math.isnan(entry["dev_mean"])


def test_a_log_file_has_a_line_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first, those of every ten seconds, and the last."""
    moments = iter([100.0, 103.0, 109.9, 110.1, 112.0, 113.0])
    run = RunReport(tmp_path, step=0, total_steps=6, job={})
    monkeypatch.setattr("pal_dist.monitoring.report.time.monotonic", lambda: next(moments))
    for step in range(1, 7):
        run.progress(step, 6, ENTRY)
    monkeypatch.undo()
    run.close()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["1/6", "4/6", "6/6"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_has_a_bar_and_lines_above_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    run = RunReport(tmp_path, step=0, total_steps=4, job={})
    run.progress(2, 4, ENTRY)
    run.say("a line")
    run.close()
    text = terminal.getvalue()
    assert "[##########..........] step 2/4  loss sst 1.250" in text
    assert "\ra line\n" in text
    assert not text.endswith("GiB  left 1:01"), "the bar is wiped in the end"


def test_without_matplotlib_the_run_goes_on_and_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hide_libraries(monkeypatch, "matplotlib")
    write_a_run(tmp_path)
    assert capsys.readouterr().err.count("pip install 'pal-dist[compare]'") == 1
    assert images_of(tmp_path) == set()
    assert [entry["confusion"] for entry in read_metrics(tmp_path) if "dev" in entry] == [{"sst": [[3, 1], [0, 4]]}]
