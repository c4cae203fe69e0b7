"""What a run writes for people and programs; pictures are drawn where their library is, and missed aloud where not."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pal_dist.monitoring import report, run_files
from pal_dist.monitoring.images import confusion_image, cosine_image
from pal_dist.monitoring.report import RunReport
from pal_dist.monitoring.run_files import read_metrics

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
    said = capsys.readouterr().err
    assert "memory 1.50 GiB  left 1:01" in said
    assert "dev mean 0.2500   sst accuracy 0.2500" in said, "the headline, wherever it stands"


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


def test_entries_of_version_0_1_0_are_read_as_todays(tmp_path: Path) -> None:
    old = [
        {"step": 2, "loss": {"sst": 1.0}, "memory_gigabytes": 2.147483648},
        {"step": 2, "dev": {"sst": {"accuracy": 0.5, "f1_macro": 0.4}}, "dev_mean": 0.5},
    ]
    (tmp_path / run_files.METRICS).write_text("".join(json.dumps(entry) + "\n" for entry in old))
    training, evaluation = read_metrics(tmp_path)
    assert training["memory_gib"] == pytest.approx(2.0)
    assert evaluation["headline"] == {"sst": "accuracy"}


def test_without_matplotlib_the_run_goes_on_and_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "has_library", lambda name: name != "matplotlib")
    write_a_run(tmp_path)
    assert capsys.readouterr().err.count("pip install 'pal-dist[compare]'") == 1
    assert images_of(tmp_path) == set()
    assert [entry["confusion"] for entry in read_metrics(tmp_path) if "dev" in entry] == [{"sst": [[3, 1], [0, 4]]}]


def test_pictures_show_what_they_are_of() -> None:
    same, other = confusion_image(np.array([[9, 1], [0, 4]])), confusion_image(np.array([[1, 9], [0, 4]]))
    assert same.dtype == np.uint8
    assert same.ndim == 3
    assert same.shape[2] == 3
    assert (same != other).any()
    against, along = ([[1.0, value], [value, 1.0]] for value in (-1.0, 1.0))
    red, blue = (cosine_image(["sst", "sts"], cosines).reshape(-1, 3).mean(axis=0) for cosines in (against, along))
    assert red[0] > blue[0], "against each other: red"
    assert blue[2] > red[2], "along: blue"
