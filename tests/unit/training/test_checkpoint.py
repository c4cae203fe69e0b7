"""Checkpoints of one rank without a model: whole or not there, the newest whole one found. (Runs: tests/ranks.)"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pal_dist.core import atomic_io
from pal_dist.core.atomic_io import draft_of
from pal_dist.core.errors import UserError
from pal_dist.training import checkpoint
from pal_dist.training.checkpoint import (
    checkpoints,
    find_damage,
    load_moments,
    load_state,
    load_values,
    newest_intact,
    save_checkpoint,
)


class EngineOfOne:
    """One rank with a layer of six weights, as the optimizer's state after some steps."""

    rank, ranks, is_main = 0, 1, True

    def __init__(self) -> None:
        self.layer = torch.nn.Linear(3, 2, bias=False)
        self.loaded: dict[str, Any] = {}
        self.loss_scale: dict[str, Any] = {}
        self.backend = SimpleNamespace(load_optimizer_state=self.loaded.__setitem__)

    def parameter_states(self) -> Iterator[tuple[str, torch.Tensor, dict[str, Any]]]:
        yield "weight", self.layer.weight, {"exp_avg": torch.arange(6.0).reshape(2, 3), "step": 7}

    def gather(self, item: Any) -> list[Any]:
        return [item]

    def wait_for_everyone(self) -> None:
        pass

    def loss_scale_state(self) -> dict[str, Any]:
        return {"scale": 1024.0}

    def load_loss_scale_state(self, state: dict[str, Any]) -> None:
        self.loss_scale = state


@pytest.fixture
def engine() -> Any:
    return EngineOfOne()


def save(folder: Path, engine: Any, *steps: int, keep: int = 9) -> list[Path]:
    for step in steps:
        save_checkpoint(folder, engine, {"step": step, "best_mean": math.nan}, keep=keep)
    return checkpoints(folder)


def test_what_is_saved_is_loaded(engine: Any, tmp_path: Path) -> None:
    (path,) = save(tmp_path, engine, 3)
    assert list(tmp_path.iterdir()) == [path]
    other = EngineOfOne()
    load_values(path, other.layer)
    assert torch.equal(other.layer.weight, engine.layer.weight)
    load_moments(path, other)  # type: ignore[arg-type]
    assert other.loaded["weight"]["step"] == 7
    assert torch.equal(other.loaded["weight"]["exp_avg"], torch.arange(6.0).reshape(2, 3))
    assert load_state(path, other) == {"step": 3, "best_mean": None}  # type: ignore[arg-type]
    assert other.loss_scale == {"scale": 1024.0}


def test_the_state_is_strict_json(engine: Any, tmp_path: Path) -> None:
    (path,) = save(tmp_path, engine, 3)

    def refuse(name: str) -> float:
        raise AssertionError(f"{name} is no JSON")

    state = json.loads((path / "state.json").read_text(), parse_constant=refuse)
    assert state["files"] == {file.name: file.stat().st_size for file in path.glob("*.safetensors")}


def test_as_many_as_asked_are_kept_and_no_drafts_of_killed_processes(engine: Any, tmp_path: Path) -> None:
    draft_of(tmp_path / "step-00000002", "all-ranks").mkdir()
    (tmp_path / ".step-00000001.draft").mkdir()  # as version 0.1.0 called it
    assert [path.name[-1] for path in save(tmp_path, engine, 3, 4, 10**7, keep=2)] == ["4", "0"]
    assert len(list(tmp_path.iterdir())) == 2


def test_the_newest_that_is_whole_is_found(engine: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second, third, fourth = save(tmp_path, engine, 1, 2, 3, 4)
    part = next(fourth.glob("*.safetensors")).name
    (fourth / part).unlink()
    os.truncate(third / part, 50)
    content = bytearray((second / part).read_bytes())
    content[:8] = b"\xff" * 8  # the length of safetensors' header
    (second / part).write_bytes(content)
    assert newest_intact(tmp_path) == first
    messages = capsys.readouterr().err
    assert f"{third} is damaged ({part} has 50 bytes, expected" in messages
    assert all(f"{path} is damaged" in messages for path in (fourth, second))
    (first / "state.json").write_text("{}")
    assert find_damage(first) == "'files'"
    assert newest_intact(tmp_path) is None


@pytest.mark.parametrize("fails", ["the room for the part", "the part", "the state"])
def test_a_full_disk_leaves_what_was_saved_before(
    fails: str, engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = save(tmp_path, engine, 1)

    def no_space(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    if fails == "the room for the part":
        monkeypatch.setattr(atomic_io.shutil, "disk_usage", lambda _: SimpleNamespace(free=1))
    else:
        monkeypatch.setattr(checkpoint, "save_file" if fails == "the part" else "write_json", no_space)
    with pytest.raises(UserError, match="the disk is full"):
        save(tmp_path, engine, 2)
    assert checkpoints(tmp_path) == before == list(tmp_path.iterdir())
