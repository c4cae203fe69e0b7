"""A saved model to ask."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pal_dist.config.schema import ModelConfig
from pal_dist.models.export import export_model
from pal_dist.models.multi_task import build_model
from pal_dist.tasks.registry import TASKS


@pytest.fixture(scope="session")
def model_folder(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of sst, para and sts that nobody has trained, of texts up to 48 word pieces."""
    torch.manual_seed(3)
    tasks = tuple(TASKS[name] for name in ("sst", "para", "sts"))
    model = build_model(tiny_bert, tasks, ModelConfig(adapter_hidden=12, adapter_heads=2), 48)
    folder = tmp_path_factory.mktemp("saved") / "model"
    export_model(
        model,
        folder,
        values=model.state_dict(),
        counts=model.parameter_counts(),
        source=tiny_bert,
        card={"synthetic": False, "adapter": "pal"},
        metrics={},
    )
    return folder
