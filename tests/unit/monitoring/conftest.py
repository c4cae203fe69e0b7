"""Folders of runs that nobody had to train."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.old_run import copy_old_run
from tests.support.written_runs import write_runs


@pytest.fixture(scope="session")
def pristine_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_runs(tmp_path_factory.mktemp("runs") / "runs")


@pytest.fixture
def runs(pristine_runs: Path, tmp_path: Path) -> Path:
    """A folder of finished runs, which a test may change: two samplings, two seeds each."""
    return Path(shutil.copytree(pristine_runs, tmp_path / "runs"))


@pytest.fixture
def old_run(tmp_path: Path) -> Path:
    return copy_old_run(tmp_path)
