"""A finished model for others: its card, and the small file of each task."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pal_dist.core.errors import UserError
from pal_dist.models.export import export_model, saved_task_parts
from pal_dist.models.multi_task import MultiTaskBert, load_model
from tests.support.tiny_model import TASKS_OF_THREE, tiny_config


@pytest.fixture
def model() -> MultiTaskBert:
    model = MultiTaskBert(tiny_config())
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


@pytest.fixture
def exported(model: MultiTaskBert, tmp_path: Path) -> Path:
    export_model(
        model,
        tmp_path / "model",
        values=model.state_dict(),
        counts=model.parameter_counts(),
        source=tmp_path,
        card={"synthetic": True, "adapter": "pal"},
        metrics={"sst": {"accuracy": 0.5}},
    )
    return tmp_path / "model"


def test_it_opens_again(model: MultiTaskBert, exported: Path) -> None:
    again = load_model(exported)
    assert again.config.adapter == "pal"
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


def test_the_card(exported: Path) -> None:
    card = (exported / "README.md").read_text()
    assert "synthetic" in card
    assert "| sst | accuracy | 0.5000 |" in card
    assert "| adapter | pal |" in card
    code = card.split("```python\n")[1].split("```")[0]
    exec(code.replace("this folder", str(exported)), namespace := {})
    assert isinstance(namespace["model"], MultiTaskBert)


def test_one_task_file_carries_a_task_over(model: MultiTaskBert, exported: Path) -> None:
    file, other = exported / "tasks" / "sst.safetensors", MultiTaskBert(tiny_config())
    other.load_task(file, "sst")
    assert all(torch.equal(value, model.task_state("sst")[name]) for name, value in other.task_state("sst").items())
    assert not torch.equal(other.heads["sts"][1].weight, model.heads["sts"][1].weight)
    with pytest.raises(UserError, match="does not fit task `sts`"):
        other.load_task(file, "sts")


def test_parts_of_tasks_are_read_back(model: MultiTaskBert, exported: Path) -> None:
    parts = saved_task_parts(exported, TASKS_OF_THREE)
    own = {name: value for name, value in model.state_dict().items() if not model.is_shared(name)}
    assert parts.keys() == own.keys()
    assert all(torch.equal(value, own[name]) for name, value in parts.items())
    with pytest.raises(UserError, match=r"cfimdb.safetensors: expected the part of `cfimdb`"):
        saved_task_parts(exported, ["cfimdb"])
