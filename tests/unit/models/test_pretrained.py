"""Where an encoder comes from, and what is refused with which words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pal_dist.core.errors import UserError
from pal_dist.models.pretrained import KNOWN_ENCODERS, encoder_config, find_model, read_model_config


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
        (json.dumps({"model_type": "roberta"}), "expected a BERT .*found 'roberta'"),
        (json.dumps([]), "expected a BERT .*found None"),
        (json.dumps({"model_type": "bert"}), "expected weights in model.safetensors or pytorch_model.bin, found neith"),
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
