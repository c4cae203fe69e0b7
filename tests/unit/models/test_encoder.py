"""The encoder computes what Transformers' BertModel computes, from the files that the hub has."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertModel

from pal_dist.config.schema import ModelConfig
from pal_dist.models.multi_task import build_model
from pal_dist.tasks.registry import resolve_tasks
from tests.support import laws


@pytest.mark.parametrize("adapter", ["pal", "none"])
@pytest.mark.parametrize("padded", [True, False])
def test_encoder_is_transformers_bert(adapter: str, padded: bool, tiny_bert: Path) -> None:
    reference = BertModel.from_pretrained(tiny_bert, attn_implementation="eager").eval()
    options = ModelConfig(adapter=adapter, adapter_hidden=12, adapter_heads=2)
    model = build_model(tiny_bert, resolve_tasks(["sst"]), options).eval()
    batch = laws.random_batch(model, "sst", rows=5, width=20, padded=padded)
    mask = torch.ones_like(batch.input_ids_BL) if batch.mask_BL is None else batch.mask_BL.long()
    expected = reference(batch.input_ids_BL, attention_mask=mask, token_type_ids=batch.token_type_ids_BL)
    adapter = model.adapters["sst"]
    hidden = model.bert(*batch[1:4], adapter=adapter)
    torch.testing.assert_close(hidden[mask.bool()], expected.last_hidden_state[mask.bool()], rtol=1e-5, atol=1e-5)
    first = model.bert(*batch[1:4], adapter=adapter, first_only=True)
    torch.testing.assert_close(first[:, 0], expected.last_hidden_state[:, 0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.pool(first, None), expected.pooler_output, rtol=1e-5, atol=1e-5)


def test_minilm_is_transformers_bert(minilm: Path) -> None:
    reference = BertModel.from_pretrained(minilm).eval()
    model = build_model(minilm, resolve_tasks(["sst"]), ModelConfig()).eval()
    batch = laws.random_batch(model, "sst", rows=4, width=30)
    expected = reference(
        batch.input_ids_BL, attention_mask=batch.mask_BL.long(), token_type_ids=batch.token_type_ids_BL
    )
    hidden = model.bert(*batch[1:4])
    torch.testing.assert_close(hidden[batch.mask_BL], expected.last_hidden_state[batch.mask_BL], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("format", ["safetensors", "bin"])
def test_checkpoints_as_the_hub_has_them(format: str, tiny_bert: Path, tmp_path: Path, capsys) -> None:
    """As in bert-base-uncased's own file: a `bert.` prefix, gamma and beta, heads of pretraining; no pooler."""
    for name in ("config.json", "vocab.txt"):
        (tmp_path / name).write_bytes((tiny_bert / name).read_bytes())
    renames = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    theirs = {"cls.predictions.bias": torch.zeros(9), "cls.seq_relationship.weight": torch.zeros(2, 24)}
    for name, value in load_file(tiny_bert / "model.safetensors").items():
        for new, old in renames.items():
            name = name.replace(new, old)
        if "pooler" not in name:
            theirs["bert." + name] = value
    if format == "bin":
        torch.save(theirs, tmp_path / "pytorch_model.bin")
    else:
        save_file(theirs, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model, expected = (
        build_model(path, resolve_tasks(["sst"]), ModelConfig(adapter="none")) for path in (tmp_path, tiny_bert)
    )
    assert "has no pooler, so a new one is trained" in capsys.readouterr().err
    for name, value in expected.bert.state_dict().items():
        assert "pooler" in name or torch.equal(value, model.bert.state_dict()[name]), name
