"""The multi-task model: what it refuses, and how a task is carried from one model to another."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pal_dist.config.schema import ModelConfig
from pal_dist.core.errors import UserError
from pal_dist.models.multi_task import MultiTaskBert, load_model
from tests.support.tiny_model import tiny_config


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"adapter_hidden": 100}, "--adapter_hidden 100 cannot be split into --adapter_heads 12"),
        ({"adapter": "top_attention", "adapter_hidden": 50}, "cannot be split"),
        ({"adapter": "palls"}, "known kinds are none, pal, "),
        ({"adapter_layers": (1, 7)}, "has layers 0 to 2"),
    ],
)
def test_options_that_an_encoder_cannot_have(options: dict[str, object], says: str) -> None:
    from pal_dist.models.multi_task import check_model_options

    with pytest.raises(UserError, match=says):
        check_model_options("tiny", tiny_config().to_dict(), ModelConfig(**options), 16)  # type: ignore[arg-type]
    check_model_options("tiny", tiny_config().to_dict(), ModelConfig(adapter="low_rank", adapter_hidden=50), 16)


def test_one_task_file_carries_a_task_over(tmp_path: Path) -> None:
    from pal_dist.models.export import export_model

    model, other = MultiTaskBert(tiny_config()), MultiTaskBert(tiny_config())
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    export_model(
        model,
        tmp_path / "m",
        values=model.state_dict(),
        counts=model.parameter_counts(),
        source=tmp_path,
        card={"synthetic": True},
        metrics={"sst": {"accuracy": 0.5}},
    )
    file = tmp_path / "m" / "tasks" / "sst.safetensors"
    other.load_task(file, "sst")
    assert all(torch.equal(value, model.task_state("sst")[name]) for name, value in other.task_state("sst").items())
    assert not torch.equal(other.heads["sts"][1].weight, model.heads["sts"][1].weight)
    with pytest.raises(UserError, match="does not fit task `sts`"):
        other.load_task(file, "sts")
    card = (tmp_path / "m" / "README.md").read_text()
    assert "synthetic" in card
    assert "| sst | accuracy | 0.5000 |" in card
    assert load_model(tmp_path / "m").config.adapter == "pal"
