"""The launch scripts: clean, helpful, printing what they would run, and passing on how the program completed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pal_dist.cli import main
from pal_dist.monitoring.status_file import read_status
from tests.support.paths import ROOT

EXPECTED = Path(__file__).with_name("expected")
FILES = sorted(path for path in (ROOT / "launch").rglob("*") if path.suffix in (".sh", ".sbatch"))
SCRIPTS = [path for path in FILES if path.read_text().startswith("#!")]

SETTINGS = ["--data_dir", "my data", "--output_dir", "runs/first"]


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "PAL_DIST"))}
    return subprocess.run(
        ["bash", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**outside, "PAL_DIST_PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **environment},
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_shellcheck(path: Path) -> None:
    shellcheck = Path(sys.executable).with_name("shellcheck")
    completed = subprocess.run([shellcheck, "--external-sources", path], capture_output=True, text=True)
    assert completed.returncode == 0, completed.stdout


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_help_has_the_command(path: Path) -> None:
    completed = run(path, "--help")
    assert completed.returncode == 0
    start = "sbatch" if path.suffix == ".sbatch" else "bash"
    assert re.search(rf"^  {start} .*{path.relative_to(ROOT)}", completed.stdout, flags=re.MULTILINE), completed.stdout
    assert "--dry-run" in completed.stdout or path.name in ("test.sh", "quickstart.sh")
    assert "shellcheck" not in completed.stdout
    assert "#SBATCH" not in completed.stdout


def same_as_expected(name: str, text: str) -> None:
    """Compared with a text that a person has read; PAL_DIST_NEW_EXPECTED=1 writes it anew, to be read again."""
    text = text.replace(sys.executable, "PYTHON").replace(str(ROOT), "ROOT").rstrip() + "\n"
    path = EXPECTED / f"{name}.txt"
    if os.environ.get("PAL_DIST_NEW_EXPECTED"):
        path.write_text(text)
    assert text == path.read_text()


DRY_RUNS = {
    "node": (["node.sh", "--nodes", 2, "--rank", 1, "--head", "n1", "--processes", 2, "--cpu", *SETTINGS], {}),
    "node_zero2_gpus": (["node.sh", "--strategy=zero2", *SETTINGS], {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}),
    "local": (["local.sh", "--processes", 2, "--cpu", *SETTINGS], {}),
    "train": (
        ["slurm/train.sbatch", "--strategy", "zero2", *SETTINGS],
        {"SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "4"},
    ),
    "train_doctor": (["slurm/train.sbatch", "doctor"], {"SLURM_GPUS_ON_NODE": "1"}),
    "sweep": (["slurm/sweep.sbatch", "--samplings", "round_robin,sqrt", "--seeds", "0,1", "--cpu", *SETTINGS[:2]], {}),
    "memory_smoke": (["slurm/memory_smoke.sbatch", "--force_tokens", 512, *SETTINGS[:2]], {"SLURM_GPUS_ON_NODE": "1"}),
}


@pytest.mark.parametrize("name", DRY_RUNS)
def test_dry_run(name: str) -> None:
    (script, *arguments), environment = DRY_RUNS[name]
    completed = run(ROOT / "launch" / str(script), *arguments, "--dry-run", **environment)
    assert completed.returncode == 0, completed.stderr
    same_as_expected(name, completed.stdout)


def test_dry_run_of_the_paper_on_a_t4() -> None:
    completed = run(ROOT / "launch" / "t4.sh", "--max_length", 64, "--dry-run", CUDA_VISIBLE_DEVICES="0")
    assert completed.returncode == 0, completed.stderr
    assert "FITS: --precision fp16" in completed.stdout
    same_as_expected("t4", completed.stdout[completed.stdout.index("# node 0") :])
    paper = ["--max_length", 512, "--precision", "fp32", "--checkpoint_layers", 0, "--tokens_per_micro_batch", 65536]
    completed = run(ROOT / "launch" / "t4.sh", *paper, "--dry-run")
    assert completed.returncode == 3
    assert "DOES NOT FIT" in completed.stdout
    assert "# node 0" not in completed.stdout


@pytest.mark.parametrize("place", ["slurm", "slurm_cpu", "local", "kubernetes", "skypilot"])
def test_launch_dry_run(place: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAL_DIST_PYTHON", "python")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    where = {
        "slurm": "slurm --nodes 2 --gpus_per_node 4 --strategy zero2 --gpu t4 --extra --partition=long",
        "slurm_cpu": "slurm --nodes 2 --gpus_per_node 0 --processes 2",
        "local": "local --gpus_per_node 0",
        "kubernetes": "kubernetes --nodes 2 --gpus_per_node 4 --gpu t4",
        "skypilot": "skypilot --nodes 2 --gpus_per_node 1 --gpu t4",
    }
    main(["launch", "--on", *where[place].split(), "--dry_run", "--", "train", "--output_dir", "runs/first"])
    same_as_expected(f"launch_{place}", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--nodes", 2], "--nodes 2 needs --head HOST"),
        (["--nodes", 2, "--rank", 2, "--head", "n1"], "--rank 2 of --nodes 2: ranks are counted from 0"),
        (["--strategy", "zero7"], "--strategy zero7: there is no"),
        (["--processes", 0], "--processes takes a whole number from 1"),
        (["--processes"], "--processes needs a value"),
    ],
)
def test_mistakes_of_a_node(arguments: list[object], says: str) -> None:
    completed = run(ROOT / "launch" / "node.sh", *arguments)
    assert completed.returncode == 2
    assert says in completed.stderr


def test_a_python_without_pal_dist(tmp_path: Path) -> None:
    completed = run(ROOT / "launch" / "local.sh", PAL_DIST_PYTHON="/usr/bin/false")
    assert completed.returncode == 2
    assert "/usr/bin/false" in completed.stderr
    assert "has no pal_dist" in completed.stderr


@pytest.fixture
def train(tiny_bert: Path, small_data: Path, cache_dir: Path, tmp_path: Path) -> list[object]:
    places = ["--data_dir", small_data, "--cache_dir", cache_dir, "--output_dir", tmp_path / "run"]
    size = ["--max_length", 48, "--max_steps", 3, "--batch_size", 8, "--adapter_hidden", 12, "--adapter_heads", 2]
    return [ROOT / "launch" / "local.sh", "--cpu", "--model", tiny_bert, *places, *size]


@pytest.mark.long
def test_a_mistake_gets_past_the_launcher(train: list[object]) -> None:
    """Its own exit code, said once, and no traceback of the launcher."""
    completed = run(*train, "--processes", 2, "--batch_size", 0)
    assert completed.returncode == 2
    assert completed.stderr.count("--batch_size is too small") == 1
    assert "Traceback" not in completed.stderr


@pytest.mark.long
def test_stopped_by_a_signal(train: list[object], tmp_path: Path) -> None:
    slow = {"PYTHONPATH": str(Path(__file__).with_name("slow")), "PAL_DIST_TEST_STEP_SECONDS": "0.5"}
    command = [*train, "--processes", 2, "--max_steps", 30, "--epochs", 9, "--log_every", 1]
    started = subprocess.Popen(
        ["bash", *map(str, command)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PAL_DIST_PYTHON": sys.executable, **slow},
    )
    end = time.monotonic() + 200
    while (entry := read_status(tmp_path / "run")) is None or entry.step < 2:
        assert time.monotonic() < end
        time.sleep(0.1)
    started.send_signal(signal.SIGUSR1)
    _, errors = started.communicate(timeout=200)
    assert started.returncode == 75, errors
    assert "SIGUSR1" in errors
    assert "Traceback" not in errors
    entry = read_status(tmp_path / "run")
    assert entry is not None
    assert (entry.state, entry.exit_code) == ("stopped", 75)
    completed = run(*command)
    assert completed.returncode == 0, completed.stderr
    assert "resumed after step" in completed.stderr
    assert json.loads((tmp_path / "run" / "results.json").read_text())["steps"] == 30


def test_host_memory_is_named(train: list[object]) -> None:
    """The kernel's killer strikes within a control group that is too small."""
    group = Path("/sys/fs/cgroup/memory") / f"pal_dist_test_{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(150 << 20))
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        inside = 'echo $$ > "$0/cgroup.procs"; exec bash "$@"'
        completed = run("-c", inside, group, *train)
        assert completed.returncode not in (0, 2)
        assert "the memory of the HOST (not of the GPU) that this job may use was full" in completed.stderr
    finally:
        end = time.monotonic() + 10
        while time.monotonic() < end:
            try:
                group.rmdir()
                break
            except OSError:
                time.sleep(0.1)
