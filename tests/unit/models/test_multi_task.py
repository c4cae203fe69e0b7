"""The multi-task model: what it refuses, and what it says of itself."""

from __future__ import annotations

import pytest
from torch import nn

from pal_dist.config.schema import ModelConfig
from pal_dist.core.errors import UserError
from pal_dist.models.adapters import Adapter
from pal_dist.models.multi_task import MultiTaskBert, check_model_options
from tests.support.laws import random_batch
from tests.support.tiny_model import TASKS_OF_THREE, tiny_config


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
    with pytest.raises(UserError, match=says):
        check_model_options("tiny", tiny_config().to_dict(), ModelConfig(**options), 16)  # type: ignore[arg-type]
    check_model_options("tiny", tiny_config().to_dict(), ModelConfig(adapter="low_rank", adapter_hidden=50), 16)


def test_others_ask_the_model_about_its_parts() -> None:
    model = MultiTaskBert(tiny_config())
    assert len(model.encoder_layers) == model.config.num_hidden_layers
    assert model.task_adapters.keys() == set(TASKS_OF_THREE)
    encoder = {id(parameter) for parameter in model.encoder.parameters()}
    shared = {name for name, parameter in model.named_parameters() if id(parameter) in encoder}
    assert {name for name, _ in model.named_parameters() if model.is_shared(name)} == shared
    assert {id(parameter) for parameter in model.shared_parameters()} == encoder
    model.freeze_encoder()
    assert model.shared_parameters() == []
    assert not model.trains_heads_only


@pytest.mark.parametrize("kind", Adapter.registry)
def test_parameters_that_are_read_without_a_call(kind: str) -> None:
    """All others belong to modules that are called, or stand inside of one that reads them all: ZeRO-3 gathers a
    module's parameters when it is called, and keeps no copies of weights."""
    model = MultiTaskBert(tiny_config(kind)).train()
    model.keep_no_weight_copies()
    called_modules: set[nn.Module] = set()

    def note(module: nn.Module, inputs: object) -> None:
        called_modules.add(module)

    for module in model.modules():
        module.register_forward_pre_hook(note)
    for task in model.heads:
        model(random_batch(model, task))
    called = {id(parameter) for module in called_modules for parameter in module.parameters(recurse=False)}
    whole = [module for module in model.modules_read_whole() if module in called_modules]
    called |= {id(parameter) for module in whole for parameter in module.parameters()}
    listed = {id(parameter) for _, parameter in model.parameters_read_directly()}
    assert called_modules.issuperset(reader for reader, _ in model.parameters_read_directly())
    assert listed.isdisjoint(called)
    assert [name for name, value in model.named_parameters() if id(value) not in called | listed] == []
