"""A run's folder is claimed by one process, and given back only to the same run on the same data."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pal_dist.config.resolve import resolve, run_from_dict
from pal_dist.core.errors import UserError
from pal_dist.training import run_folder
from pal_dist.training.run_folder import open_folder

HASHES = {"train/sst": "abc"}


def open_as_one_rank(folder: Path | None, hashes: dict[str, str] = HASHES, **flags: Any) -> Path:
    """Claim the folder and let go of it again."""
    config, origins = resolve({"output_dir": str(folder) if folder else "none"} | flags)
    engine: Any = SimpleNamespace(is_main=True, ranks=1, gather=lambda item: [item], run_folder_lock=None)
    opened, checkpoint = open_folder(config, origins, hashes, engine)
    engine.run_folder_lock.release()
    assert checkpoint is None
    return opened


def test_the_same_run_gets_its_folder_back(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert open_as_one_rank(folder, learning_rate=1e-3) == folder
    assert open_as_one_rank(folder, learning_rate=1e-3, log_every=3, cache_dir=tmp_path) == folder


@pytest.mark.parametrize(
    ("hashes", "flags", "message"),
    [
        (HASHES, {"learning_rate": 2e-3}, "--learning_rate was 0.001, is 0.002"),
        ({"train/sst": "abd"}, {}, "the data of train/sst has changed"),
        (HASHES, {"resume": "no"}, "--resume no starts anew"),
    ],
)
def test_another_run_is_refused(hashes: dict[str, str], flags: dict[str, Any], message: str, tmp_path: Path) -> None:
    open_as_one_rank(tmp_path / "run", learning_rate=1e-3)
    with pytest.raises(UserError, match=message):
        open_as_one_rank(tmp_path / "run", hashes, **{"learning_rate": 1e-3} | flags)


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("the only copy")
    with pytest.raises(UserError, match="holds files that are no run"):
        open_as_one_rank(tmp_path)
    with pytest.raises(UserError, match="expected a folder, found a file"):
        open_as_one_rank(tmp_path / "thesis.tex")


def test_two_processes_cannot_train_there(tmp_path: Path) -> None:
    folder = open_as_one_rank(tmp_path / "run")
    with run_folder.FileLock(folder / run_folder.LOCK), pytest.raises(UserError, match="another process is training"):
        open_as_one_rank(folder)


def test_runs_without_a_folder_are_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "7").mkdir(parents=True)
    (tmp_path / "runs" / "mine").mkdir()
    assert [str(open_as_one_rank(None)) for _ in range(2)] == ["runs/8", "runs/9"]


@pytest.mark.parametrize("written_by", ["today", "0.1.0"])
def test_a_setting_without_bound_is_the_same_when_resumed(written_by: str, tmp_path: Path) -> None:
    """JSON has no infinity: it is written as text. Version 0.1.0 wrote what Python alone reads."""
    folder = open_as_one_rank(tmp_path / "run", max_gradient_norm="inf")
    file = folder / "config.json"
    if written_by == "0.1.0":
        file.write_text(file.read_text().replace('"inf"', "Infinity"))
    values = json.loads(file.read_text())["values"]
    assert run_from_dict(values).optimizer.max_gradient_norm == float("inf")
    assert open_as_one_rank(folder, max_gradient_norm="inf") == folder
    with pytest.raises(UserError, match="--max_gradient_norm was"):
        open_as_one_rank(folder, max_gradient_norm=1.0)
