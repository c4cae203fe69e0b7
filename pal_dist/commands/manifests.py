"""The manifests of launch/ for Kubernetes and SkyPilot, filled in with what shall run."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

import yaml


class _Dumper(yaml.SafeDumper):
    """Shell text over several lines stays readable."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)


def _written(head_of: str, content: dict[str, Any]) -> str:
    """As yaml, with the head comment of the file that it came from."""
    head = [line for line in head_of.splitlines() if line.startswith("#")]
    body = yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=10_000)
    return "\n".join([*head, body])


def _words(*, verb: str, own: str, strategy: str, gpus: int, processes: int, arguments: Sequence[str]) -> str:
    """The command of one node for bash; `own` says which node this is, in variables of the scheduler."""
    words = f"{verb} {own} --strategy {shlex.quote(strategy)}{'' if gpus else ' --cpu'} --processes {processes}"
    return f"{words} {shlex.join(arguments)}".rstrip()


def jobset(
    text: str, *, name: str, nodes: int, gpus: int, processes: int, strategy: str, verb: str, arguments: Sequence[str],
    image: str | None, claim: str | None,
) -> str:  # fmt: skip
    """launch/kubernetes/jobset.yaml for `nodes` pods of `gpus` GPUs (0: processors) and `processes` processes each."""
    content = yaml.safe_load(text)
    content["metadata"]["name"] = name
    (job,) = content["spec"]["replicatedJobs"]
    job["template"]["spec"].update(completions=nodes, parallelism=nodes)
    pod = job["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    own = f'--nodes {nodes} --rank "$JOB_COMPLETION_INDEX" --head "$PAL_DIST_HEAD"'
    words = _words(verb=verb, own=own, strategy=strategy, gpus=gpus, processes=processes, arguments=arguments)
    container["args"] = [f'exec bash "$PAL_DIST_LAUNCH/node.sh" {words}']
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
    return _written(text, content)


def skypilot(
    text: str, *, nodes: int, gpu: str, gpus: int, processes: int, strategy: str, verb: str, arguments: Sequence[str]
) -> str:
    """launch/skypilot.yaml for `nodes` machines of `gpus` GPUs of the kind `gpu` (0: processors)."""
    content = yaml.safe_load(text)
    content["num_nodes"] = nodes
    if gpus:
        content["resources"]["accelerators"] = f"{gpu.upper()}:{gpus}"
    else:
        del content["resources"]["accelerators"]
    own = '--nodes "$SKYPILOT_NUM_NODES" --rank "$SKYPILOT_NODE_RANK" --head "$head"'
    words = _words(verb=verb, own=own, strategy=strategy, gpus=gpus, processes=processes, arguments=arguments)
    first, _ = content["run"].split("\n", 1)
    content["run"] = f"{first}\nexec bash launch/node.sh {words}\n"
    return _written(text, content)
