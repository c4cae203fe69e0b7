"""The memory smoke test: a few real steps on the largest micro-batch, held to the plan."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import pal_dist.commands.memory_check
from pal_dist.cli import main

pytestmark = pytest.mark.memory


@pytest.fixture
def profile(tiny_bert: Path, small_data: Path, cache_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def run(*arguments: str) -> tuple[int, str, Path]:
        folder = tmp_path / "profile"
        with pytest.raises(SystemExit) as ended:
            main(
                [
                    "profile",
                    "--data_dir",
                    str(small_data),
                    "--model",
                    str(tiny_bert),
                    "--cache_dir",
                    str(cache_dir),
                    "--output_dir",
                    str(folder),
                    "--max_length",
                    "48",
                    "--adapter_hidden",
                    "12",
                    "--adapter_heads",
                    "2",
                    *arguments,
                ]
            )
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out + said.err, folder

    return run


LEVERS = [
    (),
    ("--precision", "bf16", "--checkpoint_layers", "1"),
    ("--optimizer", "adamw_8bit"),
    ("--mode", "pretrain", "--tokens_per_micro_batch", "96"),
]


@pytest.mark.parametrize("flags", LEVERS)
def test_measured_is_what_was_planned(profile, flags: tuple[str, ...]) -> None:
    code, said, folder = profile(*flags)
    assert code == 0, said
    assert "measured agrees with the plan" in said
    found = json.loads((folder / "profile.json").read_text())
    assert found["measured_peak"] == pytest.approx(found["planned_peak"], rel=1e-3)
    assert sum(found["measured"].values()) == found["measured_peak"]
    assert found["modules"]
    assert (folder / "memory.png").read_bytes().startswith(b"\x89PNG")
    assert str(folder / "memory.png") in said
    assert list((folder / "tensorboard").iterdir())


def test_a_difference_has_a_code_of_its_own(profile, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan is made for another optimizer than the one that runs."""
    honest = pal_dist.commands.memory_check.build_optimizer
    monkeypatch.setattr(
        pal_dist.commands.memory_check,
        "build_optimizer",
        lambda model, options, rate: honest(model, type(options)(optimizer="adamw_8bit"), rate),
    )
    code, said, _ = profile("--adapter_hidden", "120")
    assert code == 4
    assert "measured DIFFERS from the plan" in said
