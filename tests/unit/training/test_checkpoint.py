"""Checkpoints of one rank without a model: whole or not there, the newest whole one found. (Runs: tests/ranks.)"""

from __future__ import annotations

import hashlib
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
    checkpoint_folders,
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
    sums = (path / "SHA256SUMS").read_text()
    for file in path.glob("[!S]*"):
        assert f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" in sums, "as sha256sum -c reads it"
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
    assert find_damage(first) == "state.json: `files` is missing; state.json: `scaler` is missing"
    assert newest_intact(tmp_path) is None


def flip_a_bit(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["part-00001-of-00001.safetensors", "state.json", "SHA256SUMS"])
@pytest.mark.parametrize("at", [10, -3])
def test_a_flipped_bit_is_found(
    name: str, at: int, engine: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also in the last bytes, where the weights are and every header is whole."""
    first, second = save(tmp_path, engine, 1, 2)
    flip_a_bit(second / name, at)
    assert newest_intact(tmp_path) == first
    assert f"{second} is damaged (" in capsys.readouterr().err


def test_a_file_that_is_gone_is_found(engine: Any, tmp_path: Path) -> None:
    for name in ("state.json", "SHA256SUMS"):
        (path,) = save(tmp_path / name, engine, 1)
        (path / name).unlink()
        assert name in str(find_damage(path))
        assert checkpoint_folders(tmp_path / name) == [path]


def test_a_checkpoint_of_before_has_no_checksums(engine: Any, tmp_path: Path) -> None:
    (path,) = save(tmp_path, engine, 1)
    (path / "SHA256SUMS").unlink()
    state = json.loads((path / "state.json").read_text())
    del state["checksums"]
    (path / "state.json").write_text(json.dumps(state))
    assert find_damage(path) is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"step": 2}, "state.json is of step 2"),
        ({"step": "1"}, "`step` must be a whole number from 0 on"),
        ({"examples": -5}, "`examples` must be a whole number from 0 on"),
        ({"best_each": {"sst": 5}}, "`best_each.sst` must be a mapping"),
        ({"finished": 1}, "`finished` must be true or false"),
        ({"tokens_per_micro_batch": 0}, "`tokens_per_micro_batch` must be at least 1"),
        ({"conflict": {"targets": 5}}, "`conflict.targets` must be a list"),
        ({"files": {"../x": "y"}}, "`files.../x` must be a whole number"),
        ({"files": {"x" * 3000: 1}}, "xxx is missing"),
        ({"scaler": []}, "`scaler` must be a mapping"),
    ],
)
def test_a_state_that_no_run_has(change: dict[str, Any], says: str, engine: Any, tmp_path: Path) -> None:
    (path,) = save(tmp_path, engine, 1)
    state = json.loads((path / "state.json").read_text())
    del state["checksums"]
    (path / "SHA256SUMS").unlink()
    (path / "state.json").write_text(json.dumps(state | change))
    assert says in str(find_damage(path))


def test_a_damaged_checkpoint_ahead_pushes_no_other_out(engine: Any, tmp_path: Path) -> None:
    """A run that goes on from an older one still keeps as many as asked of those it can go on from."""
    save(tmp_path, engine, 1, 9)
    (tmp_path / "step-00000009" / "state.json").unlink()
    save(tmp_path, engine, 2, keep=1)
    assert newest_intact(tmp_path) == tmp_path / "step-00000002"


def test_parameters_of_another_model(engine: Any, tmp_path: Path) -> None:
    (path,) = save(tmp_path, engine, 1)
    for model in (torch.nn.Linear(4, 2, bias=False), torch.nn.Sequential(torch.nn.Linear(3, 2))):
        with pytest.raises(UserError, match="`weight` is no parameter of this run's model"):
            load_values(path, model)


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
