"""The files of a run are read while they are written, and as version 0.1.0 wrote them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from pal_dist.monitoring import run_files
from pal_dist.monitoring.compare import build_comparison
from pal_dist.monitoring.run_files import read_metrics, read_results
from pal_dist.monitoring.status import status_of


def test_a_line_cut_short_is_passed_over(tmp_path: Path) -> None:
    assert list(read_metrics(tmp_path)) == []
    (tmp_path / run_files.METRICS).write_text('{"step": 1}\n{"step": 2}')  # whole JSON, but perhaps not the whole line
    assert [entry["step"] for entry in read_metrics(tmp_path)] == [1]


def test_entries_of_version_0_1_0_are_read_as_todays(tmp_path: Path) -> None:
    old = [
        {"step": 2, "loss": {"sst": 1.0}, "memory_gigabytes": 2.147483648},
        {"step": 2, "dev": {"sst": {"accuracy": 0.5, "f1_macro": 0.4}}, "dev_mean": 0.5},
    ]
    (tmp_path / run_files.METRICS).write_text("".join(json.dumps(entry) + "\n" for entry in old))
    training, evaluation = read_metrics(tmp_path)
    assert training["memory_gib"] == pytest.approx(2.0)
    assert evaluation["headline"] == {"sst": "accuracy"}


@pytest.mark.parametrize("number", ["NaN", "null"], ids=["as version 0.1.0 wrote it", "as today"])
def test_no_number_is_nan_when_read(number: str, tmp_path: Path) -> None:
    (tmp_path / run_files.RESULTS).write_text(
        f'{{"dev": {{"sts": {{"pearson": {number}}}}}, "dev_mean": {number}, "headline": {{"sts": "pearson"}}}}'
    )
    (tmp_path / run_files.METRICS).write_text(f'{{"step": 2, "loss": {{"sts": {number}}}}}\n')
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
