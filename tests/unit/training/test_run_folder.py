"""A run's folder is claimed by one process, and given back only to the same run on the same data."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pal_dist.config.resolve import resolve, run_from_dict
from pal_dist.core.errors import UserError
from pal_dist.monitoring.run_records import read_config
from pal_dist.monitoring.status_file import StatusFile
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


@pytest.mark.parametrize("written", ['"inf"', "Infinity"])
def test_a_setting_that_was_without_bound_is_read_as_what_says_it_today(written: str, tmp_path: Path) -> None:
    folder = open_as_one_rank(tmp_path / "run", max_gradient_norm=0.0, hang_minutes=5.0)
    file = folder / "config.json"
    for name, value in {"max_gradient_norm": "0.0", "hang_minutes": "5.0"}.items():
        assert f'"{name}": {value}' in file.read_text()
        file.write_text(file.read_text().replace(f'"{name}": {value}', f'"{name}": {written}'))
    assert run_from_dict(read_config(folder).values).optimizer.max_gradient_norm == 0
    assert open_as_one_rank(folder, max_gradient_norm=0.0) == folder
    with pytest.raises(UserError, match=r"--max_gradient_norm was 0\.0, is 1\.0"):
        open_as_one_rank(folder, max_gradient_norm=1.0)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"values": 5}', None])
def test_a_damaged_config_is_told(content: str | None, tmp_path: Path) -> None:
    folder = open_as_one_rank(tmp_path / "run")
    (folder / "status.json").touch()
    if content is None:
        (folder / "config.json").unlink()
    else:
        (folder / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json.*choose a new"):
        open_as_one_rank(folder)


def test_a_run_whose_checkpoints_are_lost_does_not_begin_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = open_as_one_rank(tmp_path / "run")
    StatusFile(folder, 0, 9, {})
    assert open_as_one_rank(folder) == folder
    assert capsys.readouterr().err == "", "nothing was done yet"
    StatusFile(folder, 7, 9, {})
    assert open_as_one_rank(folder) == folder
    assert "the run came to step 7 but left no checkpoint; it begins at step 1 again" in capsys.readouterr().err
    (folder / "results.json").touch()
    with pytest.raises(UserError, match=r"has ended .* no checkpoint is left"):
        open_as_one_rank(folder)
    (folder / "checkpoints" / "step-00000007").mkdir(parents=True)
    with pytest.raises(UserError, match="every checkpoint is damaged"):
        open_as_one_rank(folder)
    assert "state.json: there is no such file" in capsys.readouterr().err
