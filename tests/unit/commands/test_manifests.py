"""Manifests of Kubernetes and SkyPilot: filled in, and of the schema of what consumes them."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from tests.support.manifests import JOBSET, filled_jobset, filled_skypilot


def lost(written: Any, read: Any, at: str = "") -> list[str]:
    """What a model of the schema has not taken over: fields that it does not know."""
    if isinstance(written, dict):
        if not isinstance(read, dict):
            return [at]
        return [name for key, value in written.items() for name in lost(value, read.get(key), f"{at}.{key}")]
    if isinstance(written, list):
        if not isinstance(read, list) or len(read) != len(written):
            return [at]
        return [name for one, other in zip(written, read, strict=True) for name in lost(one, other, at)]
    if isinstance(written, (int, float)) and isinstance(read, (int, float)):  # a quantity is read as 1.0
        return [] if written == read else [at]
    return [] if read is not None and str(written) == str(read) else [at]


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
        complaints = fields_not_in_the_schema(wrong)
    except ValueError as error:  # a field that must be there
        complaints = [str(error)]
    assert any(field in complaint for complaint in complaints)


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


def test_skypilot_is_filled() -> None:
    content = yaml.safe_load(filled_skypilot())
    assert content["num_nodes"] == 3
    assert content["resources"]["accelerators"] == "T4:4"
    assert content["resources"]["use_spot"] is True
    assert 75 in content["resources"]["job_recovery"]["recover_on_exit_codes"]
    assert "accelerators" not in yaml.safe_load(filled_skypilot(0))["resources"]
