"""A run that version 0.1.0 trained: two tasks, six steps, on an encoder of two layers, saved every second step."""

from __future__ import annotations

import shutil
from pathlib import Path

from pal_dist.monitoring import run_files
from tests.support.paths import ROOT

FIXTURE = ROOT / "tests" / "fixtures" / "run_0_1_0"
"""Paths in its files begin with /old."""


def copy_old_run(folder: Path) -> Path:
    """Its folder, below `folder` with its data and encoder, as if it had been trained there."""
    shutil.copytree(FIXTURE, folder, dirs_exist_ok=True)
    config = folder / "run" / run_files.CONFIG
    config.write_text(config.read_text().replace("/old", str(folder)))
    return folder / "run"
