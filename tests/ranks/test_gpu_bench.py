"""The benchmark for GPUs, in miniature, so that it does not rot between machines that have one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.paths import ROOT


@pytest.mark.long
def test_every_section_runs(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("here it is measured in earnest: python tests/bench/gpu.py")
    command = [sys.executable, ROOT / "tests/bench/gpu.py", "--minutes", "1", "--output", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    records = json.loads((tmp_path / "gpu.json").read_text())
    assert not [record for record in records if "error" in record]
    measured = {record["section"] for record in records if "left_out" not in record}
    assert measured >= {"machine", "steps", "others", "kernels", "memory", "strategies", "job"}
    by_graph = [record for record in records if record.get("way") == "graph" and "replays" in record]
    assert all(record["replays"] and not record["failed_recordings"] for record in by_graph)
    tables = (tmp_path / "gpu.md").read_text()
    assert "| adapter | precision | rows | way | examples_per_second |" in tables
