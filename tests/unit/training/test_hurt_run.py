"""A run's folder with a file that is cut, flipped, empty or gone: said with the file's name, or made up for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pal_dist.cli import main
from tests.support.command_line import mistake, tiny_training


@pytest.fixture(scope="module")
def command(tiny_bert: Path, small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A `train` of two steps, evaluated after each, that has been run."""
    words = tiny_training(tiny_bert, small_data, tmp_path_factory.mktemp("trained"))
    words[words.index("--max_steps") + 1] = 2
    command = [str(word) for word in [*words, "--evaluate_every", 1, "--tasks", "sst"]]
    main(command)
    return command


@pytest.fixture
def run(command: list[str], tmp_path: Path) -> Path:
    """A copy of its run, to hurt."""
    return Path(shutil.copytree(command[command.index("--output_dir") + 1], tmp_path / "run"))


@pytest.fixture
def resume(command: list[str], run: Path) -> list[str]:
    """The command that goes on with that copy."""
    place = command.index("--output_dir") + 1
    return [*command[:place], str(run), *command[place + 1 :]]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    """A bit of the last bytes, which in safetensors are weights."""
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


HURTS: list[Callable[[Path], None]] = [cut, flip, empty, Path.unlink]


def hurt_name(hurt: object) -> str:
    return getattr(hurt, "__name__", str(hurt))


@pytest.mark.parametrize("how", [cut, empty, Path.unlink], ids=hurt_name)
def test_the_settings(
    how: Callable[[Path], None], run: Path, resume: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    how(run / "config.json")
    assert "config.json" in mistake(capsys, resume)
    assert "config.json" in (said := mistake(capsys, ["evaluate", run]))
    assert f"name the model alone, {run / 'model'}" in said
    main(["evaluate", str(run / "model")])
    assert json.loads(capsys.readouterr().out)["dev"]["sst"]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "vocab.txt"])
@pytest.mark.parametrize("how", HURTS, ids=hurt_name)
def test_the_kept_model(name: str, how: Callable[[Path], None], run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "model" / name
    how(path)
    for folder in (run, run / "model"):
        assert name in mistake(capsys, ["evaluate", folder])
    assert name in mistake(capsys, ["predict", run / "model", "--task", "sst", "--text", "good"])


def test_a_model_of_before_has_no_checksums(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "model" / "SHA256SUMS").unlink()
    main(["evaluate", str(run)])
    assert json.loads(capsys.readouterr().out)["dev"]["sst"]


@pytest.mark.parametrize("name", ["part-00001-of-00001.safetensors", "state.json"])
@pytest.mark.parametrize("how", HURTS, ids=hurt_name)
def test_a_checkpoint(
    name: str, how: Callable[[Path], None], run: Path, resume: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The older one is used, and the run ends as if nothing had been."""
    checkpoints = run / "checkpoints"
    ended = json.loads((run / "results.json").read_text())
    (run / "results.json").unlink()
    how(checkpoints / "step-00000002" / name)
    main(resume)
    said = capsys.readouterr().err
    (line,) = (line for line in said.splitlines() if "is damaged" in line)
    assert line.startswith(f"warning: {checkpoints / 'step-00000002'} is damaged (")
    assert name in line
    assert "resumed after step 1" in said
    results = json.loads((run / "results.json").read_text())
    assert (results["dev"], results["steps"]) == (ended["dev"], 2)


def test_every_checkpoint(run: Path, resume: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for path in run.rglob("state.json"):
        path.unlink()
    before = sorted(run.rglob("*"))
    assert "every checkpoint is damaged; choose a new --output_dir" in mistake(capsys, resume)
    assert sorted(run.rglob("*")) == before, "nothing is begun there"


def test_what_is_seen(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A bad line of metrics.jsonl is named, and the rest shown."""
    path = run / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([b"\x00\xff{\n", *lines]))
    main(["status", str(run)])
    shown = capsys.readouterr()
    assert "metrics.jsonl: line 1 is damaged" in shown.err
    assert "sst accuracy" in shown.out
