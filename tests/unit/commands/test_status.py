"""The verb `status`: one run or all in a folder, in words or as JSON. (The words: tests/unit/monitoring.)"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pal_dist.commands.status import status
from pal_dist.core.errors import UserError
from tests.support.written_runs import write_run


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for seed in (0, 1):
        write_run(tmp_path / "runs" / f"seed_{seed}", seed=seed)
    return tmp_path / "runs"


def test_one_run(runs: Path) -> None:
    assert "finished" in status(runs / "seed_0", as_json=False)
    assert json.loads(status(runs / "seed_0", as_json=True))["verdict"] == "finished"


def test_a_folder_of_runs(runs: Path) -> None:
    text = status(runs, as_json=False)
    assert "seed_0" in text
    assert "seed_1" in text
    lines = status(runs, as_json=True).splitlines()
    assert [json.loads(line)["verdict"] for line in lines] == ["finished", "finished"]


def test_neither(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        status(tmp_path / "nowhere", as_json=False)
