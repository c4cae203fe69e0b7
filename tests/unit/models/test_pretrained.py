"""Where an encoder comes from, and what is refused with which words."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from pal_dist.config.schema import ModelConfig
from pal_dist.core.errors import UserError
from pal_dist.models.multi_task import build_model
from pal_dist.models.pretrained import KNOWN_ENCODERS, encoder_config, find_model, read_model_config
from pal_dist.tasks.registry import TASKS


@pytest.mark.parametrize("name", [*KNOWN_ENCODERS, "google-bert/bert-base-uncased"])
def test_the_best_known_need_no_network(name: str) -> None:
    config = encoder_config(name)
    assert config["hidden_size"] % config["num_attention_heads"] == 0
    config.clear()  # a copy: the table stays whole
    assert encoder_config(name)


def test_minilm_is_as_the_table_says(minilm: Path) -> None:
    config = read_model_config(minilm)
    assert {name: config[name] for name in KNOWN_ENCODERS["minilm"]} == KNOWN_ENCODERS["minilm"]


def test_a_folder(tiny_bert: Path) -> None:
    assert find_model(str(tiny_bert)) == tiny_bert
    assert encoder_config(str(tiny_bert))["hidden_size"] == 24


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (None, "expected a model folder with config.json, found none"),
        ("{", "not readable as JSON"),
        ("[" * 99_999, "too deep"),
        (json.dumps({"model_type": "bert", "hidden_size": "24"}), "`hidden_size` must be a whole number from 0 on"),
        (json.dumps({"model_type": "bert", "hidden_act": {}}), "`hidden_act` must be text"),
        (json.dumps({"model_type": "pal_bert", "tasks": 5}), "`tasks` must be a list"),
        (json.dumps({"model_type": "roberta"}), "expected a BERT .*found 'roberta'"),
        (json.dumps([]), "expected a BERT .*found None"),
        (
            json.dumps({"model_type": "bert"}),
            "expected weights in model.safetensors or model.*index",
        ),
    ],
)
def test_folders_that_are_no_model(config: str | None, says: str, tmp_path: Path) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(UserError, match=says):
        find_model(str(tmp_path))


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such folder"):
        find_model(str(tmp_path / "nowhere"))


FORMS = ["model.safetensors", "model-*-of-*.safetensors", "pytorch_model.bin", "pytorch_model-*-of-*.bin"]


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest, tiny_bert: Path, tmp_path: Path) -> Path:
    """The tiny BERT in one of the forms that Transformers reads."""
    from transformers import BertModel

    shutil.copytree(tiny_bert, tmp_path / "bert")
    folder, pattern = tmp_path / "bert", request.param
    (folder / "model.safetensors").unlink()
    model = BertModel.from_pretrained(tiny_bert)
    if pattern.endswith("safetensors"):
        model.save_pretrained(folder, max_shard_size="20KB" if "*" in pattern else "1GB")
    elif "*" not in pattern:
        torch.save(model.state_dict(), folder / pattern)
    else:
        names = list(model.state_dict())
        parts = {f"pytorch_model-0000{n}-of-00002.bin": names[n - 1 :: 2] for n in (1, 2)}
        for part, own in parts.items():
            torch.save({name: model.state_dict()[name] for name in own}, folder / part)
        index = {"metadata": {}, "weight_map": {name: part for part, own in parts.items() for name in own}}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert (len(list(folder.glob(pattern))) > 1) == ("*" in pattern)
    return folder


def test_every_form_that_transformers_reads_is_the_same_model(form: Path, tiny_bert: Path) -> None:
    assert find_model(str(form)) == form
    models = [build_model(folder, (TASKS["sst"],), ModelConfig(adapter="none")).bert for folder in (tiny_bert, form)]
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(one, other)


def test_a_part_that_is_cut_or_gone_is_told(form: Path) -> None:
    parts = sorted(path for path in form.iterdir() if path.suffix in (".bin", ".safetensors"))
    parts[-1].write_bytes(parts[-1].read_bytes()[:100])
    with pytest.raises(UserError, match="the weights are not readable"):
        build_model(form, (TASKS["sst"],), ModelConfig(adapter="none"))
    parts[-1].unlink()
    with pytest.raises(UserError, match=r"expected (weights in|the weights' part)"):
        find_model(str(form))


@pytest.mark.parametrize(
    "content", ["", "[]", '{"weight_map": 5}', '{"weight_map": {"a": 5}}', '{"weight_map": {"a": "b"}}']
)
def test_an_index_that_is_none(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(UserError, match=r"index\.json"):
        find_model(str(tmp_path))
