"""Checkpoints of the PAL authors' program under our names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pal_dist.core.errors import UserError
from pal_dist.models.convert import convert_files, convert_state_dict
from pal_dist.models.multi_task import load_model
from tests.support.padding import packed_batch


class TestConvert:
    def test_tied_projections_listed_in_every_layer_must_agree(self) -> None:
        names = [f"bert.encoder.layer.{layer}.multi_layers.0.aug_dense.weight" for layer in range(2)]
        same, of_a_pal = torch.ones(3, 4), {"bert.encoder.layer.0.multi_layers.0.attn.key.bias": torch.ones(3)}
        converted = convert_state_dict({**dict.fromkeys(names, same), **of_a_pal}, ["sst"])
        assert list(converted.state) == ["adapters.sst.down.weight", "adapters.sst.attention.0.key.bias"]
        with pytest.raises(UserError, match="tied"):
            convert_state_dict({names[0]: same, names[1]: same + 1, **of_a_pal}, ["sst"])

    def test_attention_on_top_is_another_function(self) -> None:
        with pytest.raises(UserError, match="on top takes the encoder's place"):
            convert_state_dict({"bert.encoder.mult_dense.0.weight": torch.ones(3, 4)}, ["sst"])

    def test_gates(self) -> None:
        converted = convert_state_dict({"bert.encoder.layer.3.multi_lhuc.0.lhuc": torch.ones(4)}, ["sst"])
        assert (converted.adapter, converted.adapter_layers) == ("lhuc", [3])
        assert list(converted.state) == ["adapters.sst.gates.3"]

    def test_unknown_names_are_named(self) -> None:
        with pytest.raises(UserError, match=r"mult\.houlsby"):
            convert_state_dict({"bert.encoder.layer.0.mult.houlsby.weight": torch.ones(1)}, ["sst"])
        with pytest.raises(UserError, match="only 1 tasks"):
            convert_state_dict({"classifier.3.bias": torch.ones(1)}, ["sst"])

    def test_whole_file(self, shared: Path, tmp_path: Path) -> None:
        golden = load_file(shared / "golden" / "pals.safetensors")
        state = {k.removeprefix("param."): v.float() for k, v in golden.items() if k.startswith("param.")}
        torch.save(state, tmp_path / "pytorch_model.bin")
        (tmp_path / "bert_config.json").write_text(
            json.dumps(
                {
                    "vocab_size": 200,
                    "hidden_size": 48,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 4,
                    "intermediate_size": 96,
                    "max_position_embeddings": 64,
                    "hidden_act": "gelu",
                }
            )
        )
        convert_files(
            tmp_path / "pytorch_model.bin", tmp_path / "bert_config.json", ["sst", "para", "sts"], tmp_path / "out"
        )
        model = load_model(tmp_path / "out").double().eval()
        batch = packed_batch("sst", golden["input_ids"], golden["token_type_ids"], golden["attention_mask"])
        torch.testing.assert_close(model(batch)[0], golden["out.logits.0"], rtol=0, atol=1e-5)
