"""Kubernetes, SkyPilot and the notebook: read by the tools that consume them, and the commands in them are real."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml

from pal_dist.cli import VERBS
from pal_dist.commands.manifests import jobset, skypilot
from tests.support.paths import LAUNCH

JOBSET = (LAUNCH / "kubernetes" / "jobset.yaml").read_text()
SKYPILOT = (LAUNCH / "skypilot.yaml").read_text()
ARGUMENTS = ["--data_dir", "my data", "--output_dir", "it's $HERE", "--learning_rate", "1e-5"]


def filled_jobset(gpus: int = 4) -> str:
    return jobset(
        JOBSET, name="my-run", nodes=3, gpus=gpus, processes=gpus or 2, strategy="zero2", verb="train",
        arguments=ARGUMENTS, image="registry/pal-dist:1", claim="team",
    )  # fmt: skip


def filled_skypilot(gpus: int = 4) -> str:
    return skypilot(SKYPILOT, nodes=3, gpu="t4", gpus=gpus, processes=gpus or 2, strategy="zero2", verb="train",
                    arguments=ARGUMENTS)  # fmt: skip


def lost(given: Any, read: Any, at: str = "") -> list[str]:
    """What a model of the schema has not taken over: fields that it does not know."""
    if isinstance(given, dict):
        if not isinstance(read, dict):
            return [at]
        return [name for key, value in given.items() for name in lost(value, read.get(key), f"{at}.{key}")]
    if isinstance(given, list):
        if not isinstance(read, list) or len(read) != len(given):
            return [at]
        return [name for one, other in zip(given, read, strict=True) for name in lost(one, other, at)]
    if isinstance(given, (int, float)) and isinstance(read, (int, float)):  # a quantity is read as 1.0
        return [] if given == read else [at]
    return [] if read is not None and str(given) == str(read) else [at]


def fields_not_in_the_schema(text: str) -> list[str]:
    from kubeflow_trainer_api.models import JobsetV1alpha2JobSet

    content = yaml.safe_load(text)
    read = JobsetV1alpha2JobSet.from_dict(content)
    assert read is not None
    return lost(content, read.to_dict())


@pytest.mark.parametrize("text", [JOBSET, filled_jobset(), filled_jobset(0)], ids=["packaged", "gpus", "processors"])
def test_jobset_is_a_jobset(text: str) -> None:
    assert fields_not_in_the_schema(text) == []


@pytest.mark.parametrize("field", ["onExitCodes", "failurePolicy", "completionMode", "emptyDir", "enableDNSHostnames"])
def test_a_wrong_field_is_seen(field: str) -> None:
    assert field in JOBSET
    wrong = JOBSET.replace(f"{field}:", f"{field}s:")
    try:
        found = fields_not_in_the_schema(wrong)
    except ValueError as error:  # a field that must be there
        found = [str(error)]
    assert any(field in name for name in found)


def test_jobset_is_filled() -> None:
    content = yaml.safe_load(filled_jobset())
    (job,) = content["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert (content["metadata"]["name"], spec["completions"], spec["parallelism"]) == ("my-run", 3, 3)
    assert container["image"] == "registry/pal-dist:1"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 4
    assert container["env"][0]["value"] == "my-run-nodes-0-0.my-run"
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == "team"
    assert filled_jobset().startswith("# Trains on several nodes")
    assert "nvidia.com/gpu" not in filled_jobset(0).split("kind: JobSet")[1]


@pytest.mark.parametrize("gpus", [0, 4])
@pytest.mark.parametrize("place", ["kubernetes", "skypilot"])
def test_the_command_reaches_the_program(place: str, gpus: int) -> None:
    """The shell text of the manifest, run with the scheduler's variables: every argument as it was given."""
    told = {"PAL_DIST_PYTHON": "python", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "0,1,2,3", "HERE": "wrong"}
    if place == "kubernetes":
        content = yaml.safe_load(filled_jobset(gpus))
        container = content["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]
        command = [*container["command"], container["args"][0] + " --dry-run"]
        told |= {"PAL_DIST_LAUNCH": str(LAUNCH), "JOB_COMPLETION_INDEX": "2", "PAL_DIST_HEAD": "head"}
    else:
        command = ["bash", "-c", yaml.safe_load(filled_skypilot(gpus))["run"].rstrip() + " --dry-run"]
        told |= {"SKYPILOT_NUM_NODES": "3", "SKYPILOT_NODE_RANK": "2", "SKYPILOT_NODE_IPS": "head\nsecond\nthird"}
    outside = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    ended = subprocess.run(command, capture_output=True, text=True, env={**outside, **told}, cwd=LAUNCH.parent)
    assert ended.returncode == 0, ended.stderr
    assert (
        f"# node 2 of 3: {gpus or 2} of {3 * (gpus or 2)} processes, on {'GPUs' if gpus else 'processors'}"
        in ended.stdout
    )
    assert "--main_process_ip head" in ended.stdout
    assert "zero2.yaml" in ended.stdout
    words = subprocess.run(["bash", "-c", f"printf '%s\\n' {ended.stdout.split('pal_dist train ')[1]}"],
                           capture_output=True, text=True).stdout  # fmt: skip
    assert words.splitlines() == ARGUMENTS


def test_skypilot_is_a_task(tmp_path: Path) -> None:
    sky = pytest.importorskip("sky", reason="skypilot (a large package) is not installed: pip install skypilot")
    for number, text in enumerate([SKYPILOT, filled_skypilot(), filled_skypilot(0)]):
        path = tmp_path / f"{number}.yaml"
        path.write_text(text)
        task = sky.Task.from_yaml(str(path))
        assert task.num_nodes == (3 if number else 1)


def test_skypilot_is_filled() -> None:
    content = yaml.safe_load(filled_skypilot())
    assert content["num_nodes"] == 3
    assert content["resources"]["accelerators"] == "T4:4"
    assert content["resources"]["use_spot"] is True
    assert 75 in content["resources"]["job_recovery"]["recover_on_exit_codes"]
    assert "accelerators" not in yaml.safe_load(filled_skypilot(0))["resources"]


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
