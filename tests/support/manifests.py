"""The manifests of launch/, filled in as `pal-dist launch` does."""

from __future__ import annotations

from pal_dist.commands.manifests import jobset, skypilot
from tests.support.paths import LAUNCH

JOBSET = (LAUNCH / "kubernetes" / "jobset.yaml").read_text()
SKYPILOT = (LAUNCH / "skypilot.yaml").read_text()

ARGUMENTS = ["--data_dir", "my data", "--output_dir", "it's $HERE", "--learning_rate", "1e-5"]
"""Each of them hard for a shell."""


def filled_jobset(gpus: int = 4) -> str:
    return jobset(
        JOBSET,
        name="my-run",
        nodes=3,
        gpus=gpus,
        processes=gpus or 2,
        strategy="zero2",
        verb="train",
        arguments=ARGUMENTS,
        image="registry/pal-dist:1",
        claim="team",
    )


def filled_skypilot(gpus: int = 4) -> str:
    return skypilot(
        SKYPILOT,
        nodes=3,
        gpu="t4",
        gpus=gpus,
        processes=gpus or 2,
        strategy="zero2",
        verb="train",
        arguments=ARGUMENTS,
    )
