"""Kubernetes, SkyPilot and the notebook: read by the tools that consume them, and the commands in them are real."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import nbformat
import pytest
import yaml

from pal_dist.cli import VERBS
from tests.support.manifests import ARGUMENTS, SKYPILOT, filled_jobset, filled_skypilot
from tests.support.paths import LAUNCH


@pytest.mark.parametrize("gpus", [0, 4])
@pytest.mark.parametrize("place", ["kubernetes", "skypilot"])
def test_the_command_reaches_the_program(place: str, gpus: int) -> None:
    """The shell text of the manifest, run with the scheduler's variables: every argument as it was given."""
    scheduler_variables = {
        "PAL_DIST_PYTHON": "python",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "0,1,2,3",
        "HERE": "wrong",
    }
    if place == "kubernetes":
        content = yaml.safe_load(filled_jobset(gpus))
        container = content["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]
        command = [*container["command"], container["args"][0] + " --dry-run"]
        scheduler_variables |= {"PAL_DIST_LAUNCH": str(LAUNCH), "JOB_COMPLETION_INDEX": "2", "PAL_DIST_HEAD": "head"}
    else:
        command = ["bash", "-c", yaml.safe_load(filled_skypilot(gpus))["run"].rstrip() + " --dry-run"]
        scheduler_variables |= {
            "SKYPILOT_NUM_NODES": "3",
            "SKYPILOT_NODE_RANK": "2",
            "SKYPILOT_NODE_IPS": "head\nsecond\nthird",
        }
    outside = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    completed = subprocess.run(
        command, capture_output=True, text=True, env={**outside, **scheduler_variables}, cwd=LAUNCH.parent
    )
    assert completed.returncode == 0, completed.stderr
    assert (
        f"# node 2 of 3: {gpus or 2} of {3 * (gpus or 2)} processes, on {'GPUs' if gpus else 'processors'}"
        in completed.stdout
    )
    assert "--main_process_ip head" in completed.stdout
    assert "zero2.yaml" in completed.stdout
    lines = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {completed.stdout.split('pal_dist train ')[1]}"], capture_output=True, text=True
    ).stdout
    assert lines.splitlines() == ARGUMENTS


def test_skypilot_is_a_task(tmp_path: Path) -> None:
    sky = pytest.importorskip("sky", reason="skypilot (a large package) is not installed: pip install skypilot")
    for number, text in enumerate([SKYPILOT, filled_skypilot(), filled_skypilot(0)]):
        path = tmp_path / f"{number}.yaml"
        path.write_text(text)
        task = sky.Task.from_yaml(str(path))
        assert task.num_nodes == (3 if number else 1)


def test_the_notebook() -> None:
    """A notebook without outputs, whose commands and settings exist."""
    notebook = nbformat.read(LAUNCH / "t4.ipynb", as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    commands = []
    for cell in cells:
        assert cell.outputs == []
        assert cell.execution_count is None
        source = cell.source.replace("\\\n", "")
        python = [line for line in source.splitlines() if not line.startswith(("!", "%"))]
        compile("\n".join(python), "cell", "exec")
        commands += re.findall(r"^!pal-dist (.*)", source, flags=re.MULTILINE)
    assert {command.split()[0] for command in commands} >= {"doctor", "plan", "train", "predict", "status"}
    for command in commands:
        verb = VERBS[command.split()[0]]
        assert set(re.findall(r"--(\w+)", command)) <= set(verb.flags), command
