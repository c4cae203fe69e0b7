"""The manifests of launch/ for Kubernetes and SkyPilot, filled in with what shall run."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

import yaml


class _Dumper(yaml.SafeDumper):
    """Shell text over several lines stays readable."""


def _represent_text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _represent_text)


def _to_yaml(content: dict[str, Any], template: str) -> str:
    """The content as yaml, with the head comment of the template that it came from."""
    head = [line for line in template.splitlines() if line.startswith("#")]
    body = yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=10_000)
    return "\n".join([*head, body])


def _node_arguments(*, verb: str, node: str, strategy: str, gpus: int, processes: int, arguments: Sequence[str]) -> str:
    """What launch/node.sh is given, for bash.

    Args:
        node: its options that say which node this is, in variables of the scheduler.
    """
    options = f"{verb} {node} --strategy {shlex.quote(strategy)}{'' if gpus else ' --cpu'} --processes {processes}"
    return f"{options} {shlex.join(arguments)}".rstrip()


def jobset(
    template: str,
    *,
    name: str,
    nodes: int,
    gpus: int,
    processes: int,
    strategy: str,
    verb: str,
    arguments: Sequence[str],
    image: str | None,
    claim: str | None,
) -> str:
    """launch/kubernetes/jobset.yaml for `nodes` pods of `gpus` GPUs (0: processors) and `processes` processes each."""
    content = yaml.safe_load(template)
    content["metadata"]["name"] = name
    (job,) = content["spec"]["replicatedJobs"]
    job["template"]["spec"].update(completions=nodes, parallelism=nodes)
    pod = job["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    node = f'--nodes {nodes} --rank "$JOB_COMPLETION_INDEX" --head "$PAL_DIST_HEAD"'
    node_arguments = _node_arguments(
        verb=verb, node=node, strategy=strategy, gpus=gpus, processes=processes, arguments=arguments
    )
    container["args"] = [f'exec bash "$PAL_DIST_LAUNCH/node.sh" {node_arguments}']
    # The first pod of the first replica, in the headless service that JobSet makes under its own name.
    container["env"][0] = {"name": "PAL_DIST_HEAD", "value": f"{name}-{job['name']}-0-0.{name}"}
    limits = container["resources"]["limits"]
    if gpus:
        limits["nvidia.com/gpu"] = gpus
    else:
        del limits["nvidia.com/gpu"]
    container["image"] = image or container["image"]
    if claim:
        pod["volumes"][0]["persistentVolumeClaim"]["claimName"] = claim
    return _to_yaml(content, template)


def skypilot(
    template: str,
    *,
    nodes: int,
    gpu: str,
    gpus: int,
    processes: int,
    strategy: str,
    verb: str,
    arguments: Sequence[str],
) -> str:
    """launch/skypilot.yaml for `nodes` machines of `gpus` GPUs of the kind `gpu` (0: processors)."""
    content = yaml.safe_load(template)
    content["num_nodes"] = nodes
    if gpus:
        content["resources"]["accelerators"] = f"{gpu.upper()}:{gpus}"
    else:
        del content["resources"]["accelerators"]
    node = '--nodes "$SKYPILOT_NUM_NODES" --rank "$SKYPILOT_NODE_RANK" --head "$head"'
    node_arguments = _node_arguments(
        verb=verb, node=node, strategy=strategy, gpus=gpus, processes=processes, arguments=arguments
    )
    first, _ = content["run"].split("\n", 1)
    content["run"] = f"{first}\nexec bash launch/node.sh {node_arguments}\n"
    return _to_yaml(content, template)
