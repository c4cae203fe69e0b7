"""The doctor's checks of one machine."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from pal_dist.commands.doctor import host
from pal_dist.commands.doctor.findings import Finding, run_check


def test_versions_out_of_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "1.13.0" if name == "torch" else honest(name))
    findings = {finding.check: finding for finding in host.versions()}
    assert findings["torch"].level == "red"
    assert findings["torch"].cure.startswith("pip install 'torch")
    assert findings["numpy"].level == "green"
    assert "ruff" not in findings, "extras are not needed"


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
    one = {
        "memory.limit_in_bytes": f"{1 << 30}",
        "memory.usage_in_bytes": f"{1 << 29}",
        "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2",
    }
    two = {"memory.max": f"{1 << 30}", "memory.current": f"{1 << 29}", "memory.events": "low 0\noom 3\noom_kill 2"}
    for name, text in (one if ":memory:" in line else two).items():
        (folder / name).write_text(text)
    monkeypatch.setattr(host, "CGROUP", tmp_path)
    assert host.control_group() == (1 << 30, 1 << 29, 2)
    first, second = host.memory(1)
    assert "this job may use 1.00 GiB, of which 0.50 GiB are taken" in first.found
    assert first.level == "yellow"
    assert "killed 2 processes" in second.found
