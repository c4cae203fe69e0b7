"""The verb `data`."""

from __future__ import annotations

from pathlib import Path

import pytest

from pal_dist.commands import data
from pal_dist.commands.options import FETCHED_TASKS
from pal_dist.core.errors import UserError


def test_fetch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(data, "fetch", lambda folder, tasks: [folder / task for task in tasks])
    flags = {"data_dir": str(tmp_path)}
    assert data.prepare_data("fetch", flags, cache_dir=tmp_path) == [
        tmp_path / name for name in FETCHED_TASKS.split(",")
    ]
    assert data.prepare_data("fetch", {**flags, "tasks": "cola"}, cache_dir=tmp_path) == [tmp_path / "cola"]


def test_tokenize(tiny_bert: Path, small_data: Path, tmp_path: Path) -> None:
    flags = {"model": str(tiny_bert), "data_dir": str(small_data), "tasks": "sst", "max_length": "48"}
    assert data.prepare_data("tokenize", flags, cache_dir=tmp_path) == []
    assert any(tmp_path.iterdir())


@pytest.mark.parametrize(("action", "flags"), [("", {}), ("fetch", {"tasks": "sst"}), ("get", {"data_dir": "x"})])
def test_how_it_is_used(action: str, flags: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"use: pal-dist data fetch --data_dir FOLDER .* or data tokenize"):
        data.prepare_data(action, flags, cache_dir=tmp_path)


def test_fetch_takes_no_settings_of_a_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown setting --seed"):
        data.prepare_data("fetch", {"data_dir": str(tmp_path), "seed": "1"}, cache_dir=tmp_path)
