"""The files of a run are read while they are written, as version 0.1.0 wrote them, and where they are damaged."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from pal_dist.core.errors import UserError
from pal_dist.monitoring import run_files
from pal_dist.monitoring.compare import build_comparison
from pal_dist.monitoring.run_records import read_config, read_metrics, read_results
from pal_dist.monitoring.status import status_of
from tests.support.written_runs import rewrite


def log_entry(step: int) -> dict[str, Any]:
    """As training writes one."""
    rates = dict.fromkeys(("examples_per_second", "tokens_per_second", "memory_gib", "seconds_left"), 1.0)
    return {"step": step, "loss": {"sst": 1.0}, **rates}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"{", "line 2 is damaged and passed over: not readable as JSON"),
        (b"\xff\x00", "not readable as JSON"),
        (b"[" * 99_999, "not readable as JSON"),
        (b"[]", "expected a mapping, found []"),
        (b'{"step": 5}', "`loss` is missing"),
        (json.dumps(log_entry(5) | {"step": "5"}).encode(), "`step` must be a whole number from 0 on, found '5'"),
        (json.dumps(log_entry(5) | {"loss": [1]}).encode(), "`loss` must be a mapping"),
        (
            json.dumps(log_entry(5) | {"loss": {"sst": "x"}}).encode(),
            "`loss.sst` must be a finite number",
        ),
        (json.dumps(log_entry(5) | {"seconds_left": None}).encode(), "`seconds_left` must be a finite number"),
        (b'{"step": 5, "dev": 5, "headline": {}, "dev_mean": 1}', "`dev` must be a mapping, found 5"),
        (
            b'{"step": 5, "dev": {"a": {"f1": 1}}, "headline": {"a": "b"}, "dev_mean": 1}',
            "`headline.a` is 'b'",
        ),
        (b'{"step": 5, "dev": {}, "headline": {}, "dev_mean": 1, "confusion": {"a": [[-1]]}}', "`confusion.a[0][0]`"),
    ],
)
def test_a_damaged_line_is_said(line: bytes, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = [json.dumps(log_entry(step)).encode() for step in (4, 6)]
    (tmp_path / run_files.METRICS).write_bytes(b"\n".join([whole[0], line, whole[1], b""]))
    assert [entry["step"] for entry in read_metrics(tmp_path)] == [4, 6]
    assert says in capsys.readouterr().err


def test_many_damaged_lines_are_said_in_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / run_files.METRICS).write_bytes(b"x\n" * 100)
    assert list(read_metrics(tmp_path)) == []
    assert capsys.readouterr().err.count("\n") == 4


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "config.json is missing"),
        ("", "config.json: not readable as JSON"),
        ("{", "config.json: not readable as JSON"),
        ("[]", "expected `name: value` pairs"),
        ("{}", "`values` is missing"),
        ('{"values": {"train": 5}}', "`values.train` must be a mapping, found 5"),
        ('{"values": {"train": {"seed": [1]}}}', "--seed takes whole number; found [1]"),
        ('{"values": {"train": {"epochs": 1.5}}}', "--epochs takes whole number; found 1.5"),
        ('{"values": {}, "content": {"train/sst": 3}}', "`content.train/sst` must be text, found 3"),
        ('{"values": {}, "origins": []}', "`origins` must be a mapping"),
    ],
)
def test_a_damaged_config(text: str | None, says: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / run_files.CONFIG).write_text(text)
    with pytest.raises(UserError, match=re.escape(says)):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"dev": []}, "`dev` must be a mapping"),
        ({"dev": {"sst": {}}}, "`headline.sst` is 'accuracy', of which `dev` has no value"),
        ({"steps": "6"}, "`steps` must be a whole number"),
        ({"seconds": None}, "`seconds` must be a finite number"),
        ({"parameters_by_part": {"total": 1.5}}, "`parameters_by_part.total` must be a whole number"),
        ({"ranks": True}, "`ranks` must be a whole number"),
        ({"dev_mean": "x"}, "`dev_mean` must be a finite number"),
    ],
)
def test_damaged_results(change: dict[str, object], says: str, runs: Path) -> None:
    path = runs / "round_robin_0" / run_files.RESULTS
    rewrite(path, **change)
    with pytest.raises(UserError, match=says):
        read_results(path.parent)


def test_a_line_cut_short_is_passed_over(tmp_path: Path) -> None:
    assert list(read_metrics(tmp_path)) == []
    lines = [json.dumps(log_entry(step)) for step in (1, 2)]
    (tmp_path / run_files.METRICS).write_text("\n".join(lines))  # whole JSON, but perhaps not the whole line
    assert [entry["step"] for entry in read_metrics(tmp_path)] == [1]


def test_entries_of_version_0_1_0_are_read_as_todays(tmp_path: Path) -> None:
    old = [
        {name: value for name, value in log_entry(2).items() if name != "memory_gib"}
        | {"memory_gigabytes": 2.147483648},
        {"step": 2, "dev": {"sst": {"accuracy": 0.5, "f1_macro": 0.4}}, "dev_mean": 0.5},
    ]
    (tmp_path / run_files.METRICS).write_text("".join(json.dumps(entry) + "\n" for entry in old))
    training, evaluation = read_metrics(tmp_path)
    assert training["memory_gib"] == pytest.approx(2.0)
    assert evaluation["headline"] == {"sst": "accuracy"}


@pytest.mark.parametrize("number", ["NaN", "null"], ids=["as version 0.1.0 wrote it", "as today"])
def test_no_number_is_nan_when_read(number: str, pristine_runs: Path, tmp_path: Path) -> None:
    written = json.loads((pristine_runs / "round_robin_0" / run_files.RESULTS).read_text())
    written |= {"dev": {"sts": {"pearson": math.nan}}, "dev_mean": math.nan, "headline": {"sts": "pearson"}}
    (tmp_path / run_files.RESULTS).write_text(json.dumps(written).replace("NaN", number))
    entry = json.dumps(log_entry(2) | {"loss": {"sts": math.nan}}).replace("NaN", number)
    (tmp_path / run_files.METRICS).write_text(entry + "\n")
    results = read_results(tmp_path)
    (entry,) = read_metrics(tmp_path)
    values = results["dev"]["sts"]["pearson"], results["dev_mean"], entry["loss"]["sts"]
    assert all(isinstance(value, float) and math.isnan(value) for value in values)


def test_status_of_a_run_of_version_0_1_0(old_run: Path) -> None:
    status = status_of(old_run)
    assert status.verdict == "finished"
    assert "sst accuracy 0." in status.text()
    assert " GiB" in status.text()


def test_compare_reads_a_run_of_version_0_1_0(old_run: Path) -> None:
    comparison = build_comparison([old_run])
    results = json.loads((old_run / run_files.RESULTS).read_text())
    assert f"{results['dev']['sts']['pearson']:.4f}" in comparison.markdown()
    assert "sts pearson" in comparison.markdown()
