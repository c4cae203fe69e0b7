"""The doctor: what is well is green on every rank, each thing that is wrong is red or yellow with its cure."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
import torch

from pal_dist.cli import main
from pal_dist.commands.doctor import Diagnosis, all_ranks, diagnose, host
from pal_dist.commands.doctor.findings import Finding, run_check
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


def test_versions_out_of_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "1.13.0" if name == "torch" else honest(name))
    found = {finding.check: finding for finding in host.versions()}
    assert found["torch"].level == "red"
    assert found["torch"].cure.startswith("pip install 'torch")
    assert found["numpy"].level == "green"
    assert "ruff" not in found, "extras are not needed"


def test_a_check_that_fails_is_a_finding() -> None:
    def fails() -> Iterator[Finding]:
        yield Finding("first", "green", "seen")
        raise ZeroDivisionError("odd")

    first, second = run_check("odd check", fails)
    assert first.level == "green"
    assert (second.check, second.level) == ("odd check", "red")
    assert "ZeroDivisionError: odd" in second.found


def test_too_many_threads_for_the_cores() -> None:
    (finding,) = host.processors(10_000)
    assert finding.level == "yellow"
    assert "OMP_NUM_THREADS=1" in finding.cure


def test_limits_of_a_control_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both versions, as files of the shape that the kernel writes."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    line = next(line for line in lines if line.startswith("0::") or ":memory:" in line)
    folder = tmp_path / ("memory" if ":memory:" in line else "") / line.split(":", 2)[2].lstrip("/")
    folder.mkdir(parents=True, exist_ok=True)
    one = {"memory.limit_in_bytes": f"{1 << 30}", "memory.usage_in_bytes": f"{1 << 29}",
           "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2"}  # fmt: skip
    two = {"memory.max": f"{1 << 30}", "memory.current": f"{1 << 29}", "memory.events": "low 0\noom 3\noom_kill 2"}
    for name, text in (one if ":memory:" in line else two).items():
        (folder / name).write_text(text)
    monkeypatch.setattr(host, "CGROUP", tmp_path)
    assert host.control_group() == (1 << 30, 1 << 29, 2)
    first, second = host.memory(1)
    assert "this job may use 1.00 GiB, of which 0.50 GiB are taken" in first.found
    assert first.level == "yellow"
    assert "killed 2 processes" in second.found
