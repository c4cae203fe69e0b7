"""The encoder computes what Transformers' BertModel computes, from the files that the hub has."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BertModel

from pal_dist.config.schema import ModelConfig
from pal_dist.data.batch import Batch, pack_batch
from pal_dist.models.adapters.slices import AdapterSlices
from pal_dist.models.multi_task import MultiTaskBert, build_model
from pal_dist.models.packed_rows import PackedRows
from pal_dist.tasks.registry import resolve_tasks
from tests.support import laws
from tests.support.padding import packed, padded_inputs
from tests.support.tiny_model import tiny_config


def hidden_of(model: MultiTaskBert, batch: Batch, *, first_only: bool = False) -> Tensor:
    rows = PackedRows(batch.row_starts, batch.lengths)
    adapters = AdapterSlices([model.adapters[batch.segments[0].task]], rows, [rows])
    inputs = batch.input_ids_T, batch.token_type_ids_T, batch.positions_T
    hidden: Tensor = model.bert(*inputs, rows, adapters=adapters, first_only=first_only)
    return hidden


@pytest.mark.parametrize("adapter", ["pal", "none"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_encoder_is_transformers_bert(adapter: str, attention: str, tiny_bert: Path) -> None:
    reference = BertModel.from_pretrained(tiny_bert, attn_implementation=attention).eval()
    options = ModelConfig(adapter=adapter, adapter_hidden=12, adapter_heads=2)
    model = build_model(tiny_bert, resolve_tasks(["sst"]), options).eval()
    batch = laws.random_batch(model, "sst", rows=5, longest=20)
    expected = reference(**padded_inputs(batch))
    last = packed(expected.last_hidden_state, batch.lengths.tolist())
    torch.testing.assert_close(hidden_of(model, batch), last, rtol=1e-5, atol=1e-5)
    first = hidden_of(model, batch, first_only=True)
    torch.testing.assert_close(first, expected.last_hidden_state[:, 0], rtol=1e-5, atol=1e-5)
    rows = PackedRows(batch.row_starts, batch.lengths)
    torch.testing.assert_close(model.pool(first, rows), expected.pooler_output, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_gradients_are_those_of_transformers_bert(attention: str, tiny_bert: Path) -> None:
    """In float64, of every parameter."""
    reference = BertModel.from_pretrained(tiny_bert, attn_implementation=attention).double().eval()
    model = build_model(tiny_bert, resolve_tasks(["sst"]), ModelConfig(adapter="none")).double().eval()
    batch = laws.random_batch(model, "sst", rows=7, longest=20)
    expected = reference(**padded_inputs(batch))
    weights = torch.randn(batch.tokens, model.config.hidden_size, dtype=torch.float64)
    pooled = model.pool(hidden_of(model, batch, first_only=True), PackedRows(batch.row_starts, batch.lengths))
    ((hidden_of(model, batch) * weights).sum() + pooled.square().sum()).backward()
    last = packed(expected.last_hidden_state, batch.lengths.tolist())
    ((last * weights).sum() + expected.pooler_output.square().sum()).backward()
    own = dict(model.bert.named_parameters())
    for name, value in reference.named_parameters():
        torch.testing.assert_close(own[name].grad, value.grad, rtol=1e-9, atol=1e-9, msg=name)


def test_minilm_is_transformers_bert(minilm: Path) -> None:
    reference = BertModel.from_pretrained(minilm).eval()
    model = build_model(minilm, resolve_tasks(["sst"]), ModelConfig(adapter="none")).eval()
    batch = laws.random_batch(model, "sst", rows=4, longest=30)
    expected = packed(reference(**padded_inputs(batch)).last_hidden_state, batch.lengths.tolist())
    torch.testing.assert_close(hidden_of(model, batch), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("adapter", ["none", "pal", "lora", "lhuc", "houlsby", "top_attention"])
def test_16_bits_follow_float32(adapter: str) -> None:
    """Everything within a layer in bf16: nearly the same logits, gradients in float32 that point the same way."""
    config = tiny_config(
        adapter, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, head_dropout=0.0, initializer_range=0.1
    )
    model = MultiTaskBert(config).train()
    for parameter in model.adapters.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    batch = pack_batch([(task, laws.random_rows(model, task, [12, 9, 5])) for task in model.heads])
    gradients = []
    for enabled in (False, True, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            logits = model(batch)
            loss = laws.loss_of(model, batch)
        assert {each.dtype for each in logits} == {torch.float32}
        loss.backward()
        assert {value.grad.dtype for value in model.parameters()} == {torch.float32}
        gradients.append(torch.cat([value.grad.flatten() for value in model.parameters()]))
    exact, low, again = gradients
    assert torch.equal(low, again), "copies of weights serve more than one micro-batch"
    assert (low - exact).norm() < 0.05 * exact.norm()
    with torch.no_grad():
        next(iter(model.bert.encoder.layer[0].parameters())).mul_(2)
    with torch.autocast("cpu", torch.bfloat16):
        assert not torch.equal(torch.cat(model(batch)[:1]), torch.cat(logits[:1])), "changed weights are copied anew"


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
