"""The doctor: what is well is green on every rank, each thing that is wrong is red or yellow with its cure."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from pal_dist.cli import main
from pal_dist.commands.doctor import Diagnosis, all_ranks, diagnose
from pal_dist.commands.doctor.findings import Finding
from pal_dist.config.resolve import resolve
from pal_dist.training import run_folder
from tests.support.ranks import run_ranks


def examined(output_dir: Path | str, cache_dir: Path, strategy: str = "auto", trouble: str = "") -> Diagnosis:
    """Rank 1 is the odd one."""
    odd = os.environ.get("RANK") == "1"
    if trouble == "folder":
        os.chdir(output_dir)
        (Path(str(odd))).mkdir()
        os.chdir(str(odd))
        output_dir, run_folder.SEEN_WITHIN = "runs", 1.0
    if odd and trouble == "parameters":
        honest = all_ranks.Trainer.fit

        def fit(self):  # type: ignore[no-untyped-def]
            state = honest(self)
            next(self.engine.model.parameters()).data.add_(1e-7)
            return state

        all_ranks.Trainer.fit = fit  # type: ignore[method-assign]
    run, _ = resolve({"output_dir": str(output_dir), "strategy": strategy})
    return diagnose(run, cache_dir=cache_dir, rank=int(odd))


def by_check(diagnosis: Diagnosis) -> dict[str, Finding]:
    return {finding.check: finding for finding in diagnosis.findings}


def test_all_is_well_with_one_process(cache_dir: Path, tmp_path: Path) -> None:
    found = examined(tmp_path / "runs", cache_dir)
    checks = by_check(found)
    assert found.level in ("green", "yellow")
    assert found.exit_code == 0
    assert checks["torch"].found == torch.__version__
    assert "2 steps under ddp in fp32" in checks["training"].found
    assert "AdamW8bit steps on cpu" in checks["adamw_8bit"].found
    if not torch.cuda.is_available():
        assert checks["GPU"].level == "yellow"
    assert list((tmp_path / "runs").iterdir()) == [], "nothing is left behind"


@pytest.mark.parametrize("strategy", ["ddp", "zero2", "fsdp2"])
def test_all_is_well_with_two(strategy: str, cache_dir: Path, tmp_path: Path) -> None:
    main_one, other = run_ranks(examined, tmp_path / "runs", cache_dir, strategy)
    checks = by_check(main_one)
    assert (main_one.is_main, other.is_main) == (True, False)
    assert main_one.exit_code == 0, main_one.text()
    assert f"strategy {strategy}" in checks["ranks"].found
    assert "64 MiB" in checks["all-reduce"].found
    assert checks["training"].level == "green", main_one.text()
    assert {"skew", "clocks", "shared folder"} <= set(checks)


@pytest.mark.parametrize(
    ("trouble", "check", "words"),
    [
        ("folder", "start", "rank 1 on "),
        ("parameters", "training", "rank 1 ended with other parameters than rank 0"),
    ],
)
def test_trouble_between_ranks(trouble: str, check: str, words: str, cache_dir: Path, tmp_path: Path) -> None:
    found, _ = run_ranks(examined, tmp_path, cache_dir, "ddp", trouble)
    assert by_check(found)[check].level == "red"
    assert words in by_check(found)[check].found
    assert found.exit_code == 1
    assert f"red: {check}: " in found.text()


def test_a_start_that_fails_is_told(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if torch.cuda.is_available():
        pytest.skip("fp16 is right on a GPU")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(SystemExit) as caught:
        main(["doctor", "--precision", "fp16", "--json", "true", "--output_dir", str(tmp_path / "run")])
    assert caught.value.code == 1
    found = json.loads(capsys.readouterr().out)
    assert found["level"] == "red"
    assert any("--precision fp16 needs a GPU" in finding["found"] for finding in found["findings"])
    assert any(finding["check"] == "torch" for finding in found["findings"]), "the other checks go on"
