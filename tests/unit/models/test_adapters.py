"""Every kind of adapter against its laws, the authors' outputs and the papers' counts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import BertConfig

from pal_dist.data.batch import Batch, pack_batch
from pal_dist.models.adapters import Adapter, Geometry
from pal_dist.models.adapters.slices import AdapterSlices
from pal_dist.models.convert import convert_state_dict
from pal_dist.models.multi_task import MultiTaskBert, MultiTaskBertConfig
from pal_dist.models.packed_rows import PackedRows
from tests.support import laws
from tests.support.padding import packed, packed_batch
from tests.support.tiny_model import TASKS_OF_THREE, tiny_config


@pytest.mark.parametrize("kind", Adapter.registry)
class TestLawsOfEveryAdapter:
    def test_identity_at_birth(self, kind: str) -> None:
        laws.assert_identity_at_birth(MultiTaskBert(tiny_config(kind)), MultiTaskBert(tiny_config("none")))

    @pytest.mark.parametrize("pooling", ["pooler", "first", "mean"])
    def test_everything_moves(self, kind: str, pooling: str) -> None:
        laws.assert_everything_moves(MultiTaskBert(tiny_config(kind, pooling=pooling, hidden_dropout_prob=0.0)))

    def test_tasks_apart(self, kind: str) -> None:
        laws.assert_tasks_apart(MultiTaskBert(tiny_config(kind)))

    @pytest.mark.parametrize("pooling", ["pooler", "first", "mean"])
    def test_no_batch_mates(self, kind: str, pooling: str) -> None:
        model = MultiTaskBert(tiny_config(kind, pooling=pooling))
        for parameter in model.adapters.parameters():  # not at birth, where an adapter is nothing
            torch.nn.init.normal_(parameter, std=0.3)
        laws.assert_no_batch_mates(model)

    def test_save_and_load(self, kind: str, tmp_path: Path) -> None:
        model = MultiTaskBert(tiny_config(kind, head_layers=1))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter)
        model.save_pretrained(tmp_path)
        again = MultiTaskBert.from_pretrained(tmp_path)
        assert all(
            torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True)
        )
        assert again.config.task_table() == model.config.task_table()


@pytest.mark.parametrize("kind", ["none", "pals", "low_rank", "houlsby", "houlsby_plus_pals"])
def test_golden_vectors_of_the_authors_program(kind: str, shared: Path) -> None:
    path = shared / "golden" / f"{kind}.safetensors"
    with safe_open(path, "pt") as file:
        facts = json.loads(file.metadata()["config"])
    golden = load_file(path)
    theirs = {name.removeprefix("param."): value for name, value in golden.items() if name.startswith("param.")}
    converted = convert_state_dict(theirs, list(TASKS_OF_THREE))
    config = tiny_config(
        converted.adapter,
        adapter_hidden=converted.adapter_hidden or 0,
        adapter_bottleneck=converted.adapter_bottleneck or 0,
        adapter_heads=facts["adapter_heads"] or 1,
        hidden_size=facts["hidden"],
        num_hidden_layers=facts["layers"],
        num_attention_heads=facts["heads"],
        intermediate_size=facts["intermediate"],
        layer_norm_eps=facts["layer_norm_eps"],
        vocab_size=theirs["bert.embeddings.word_embeddings.weight"].shape[0],
        max_position_embeddings=theirs["bert.embeddings.position_embeddings.weight"].shape[0],
    )
    model = MultiTaskBert(config).double().eval()
    model.load_state_dict(converted.state, strict=True)
    close = {"rtol": 0, "atol": 1e-9}
    for index, task in enumerate(TASKS_OF_THREE):
        batch = packed_batch(task, golden["input_ids"], golden["token_type_ids"], golden["attention_mask"])
        inputs = batch.input_ids_T, batch.token_type_ids_T, batch.positions_T
        rows = PackedRows(batch.row_starts, batch.lengths)
        slices = AdapterSlices([model.adapters[task]], rows, [rows])

        def golden_rows(name: str, index: int = index, batch: Batch = batch) -> torch.Tensor:
            return packed(golden[f"out.{name}.{index}"], batch.lengths.tolist())

        torch.testing.assert_close(model.bert(*inputs, rows, adapters=slices), golden_rows("last_hidden"), **close)
        first = model.bert(*inputs, rows, adapters=slices, first_only=True)
        pooled = model.pool(first, rows)
        torch.testing.assert_close(pooled, golden[f"out.pooled.{index}"], **close)
        torch.testing.assert_close(model.heads[task](pooled), golden[f"out.logits.{index}"], **close)
        seen = []
        hook = model.bert.encoder.layer[0].register_forward_hook(lambda module, given, out, seen=seen: seen.append(out))
        (logits,) = model(batch)
        hook.remove()
        torch.testing.assert_close(seen[0], golden_rows("first_hidden"), **close)
        if index == 0:
            logits.square().sum().backward()
    gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    expected = convert_state_dict(
        {name.removeprefix("grad0."): value for name, value in golden.items() if name.startswith("grad0.")},
        list(TASKS_OF_THREE),
    ).state
    assert gradients.keys() <= expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(gradients.get(name, torch.zeros_like(value)), value, rtol=0, atol=1e-9)


BERT_BASE_UNCASED = BertConfig()  # Transformers' defaults are bert-base-uncased's geometry


@pytest.mark.parametrize(
    ("kind", "per_task", "times_of_8", "times_of_3"),
    [
        ("pal", 1_819_836, 1.1330, 1.0499),
        ("low_rank", 1_853_616, 1.1354, 1.0508),
        ("houlsby", 1_862_832, 1.1361, 1.0510),
        ("houlsby_parallel", 1_862_832, 1.1361, 1.0510),
        ("houlsby_plus_pal", 2_053_668, 1.1500, 1.0563),
        ("top_attention", 1_320_444, 1.0965, 1.0362),
        ("lhuc", 9_216, 1.0007, 1.0003),
        ("lora", 294_912, 1.0215, 1.0081),
        ("progressive_pal", 1_819_836 + 12, 1.1330, 1.0499),
    ],
)
def test_parameter_counts_of_the_authors(kind: str, per_task: int, times_of_8: float, times_of_3: float) -> None:
    """Their program's counts (LoRA: 12 layers x 2 matrices x 2 x 768 x 8; progressive PALs: a gate a layer more). Their
    base model with the 8 heads of GLUE has 109,494,544 parameters."""
    assert counts_of(kind, [2, 1, 2, 3, 2, 2, 2, 2]) == (109_494_544, 8 * per_task)
    base, own = counts_of(kind, [5, 2, 1])
    assert own == 3 * per_task
    assert round((109_494_544 + 8 * per_task) / 109_494_544, 4) == times_of_8
    assert round((base + own) / base, 4) == times_of_3


def counts_of(kind: str, tasks: list[int]) -> tuple[int, int]:
    """Parameters of bert-base-uncased with heads, and of the adapters at their kind's own width."""
    entries = [
        {
            "name": f"t{index}",
            "files": {},
            "text_a": "a",
            "label": "b",
            "metric": "pearson" if outputs == 1 else "accuracy",
            "objective": {"score": [0, 5]} if outputs == 1 else {"classes": outputs},
        }
        for index, outputs in enumerate(tasks)
    ]
    with torch.device("meta"):
        model = MultiTaskBert(
            MultiTaskBertConfig(tasks=entries, adapter=kind, adapter_hidden=Adapter.registry[kind].width)
        )
    adapters = sum(parameter.numel() for parameter in model.adapters.parameters())
    return model.parameter_counts()["total"] - adapters, adapters


def one_row(length: int) -> PackedRows:
    return PackedRows(torch.tensor([0, length], dtype=torch.int32), np.array([length], dtype=np.int32))


@pytest.mark.parametrize("kind", Adapter.registry)
@pytest.mark.parametrize("first_only", [False, True])
def test_tasks_together_are_tasks_one_by_one(kind: str, first_only: bool) -> None:
    """Law 10: what is computed for all tasks at once, and without calling modules, is what each adapter says alone."""
    model = MultiTaskBert(tiny_config(kind, pooling="pooler" if first_only else "mean")).double().eval()
    for parameter in model.adapters.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    batch = pack_batch([(task, laws.random_rows(model, task, [12, 12, 5])) for task in TASKS_OF_THREE])
    together = model(batch)
    model.keep_no_weight_copies()
    for fast, plain in zip(together, model(batch), strict=True):
        torch.testing.assert_close(fast, plain, rtol=0, atol=1e-13)


@pytest.mark.parametrize("kind", Adapter.registry)
def test_a_task_without_rows_takes_part(kind: str) -> None:
    """Every rank runs the same modules; where it has no row of a task, that task's gradients are zero."""
    model = MultiTaskBert(tiny_config(kind)).train()
    lengths = {"sst": [9, 5], "para": [], "sts": [7]}
    laws.loss_of(
        model, pack_batch([(task, laws.random_rows(model, task, own)) for task, own in lengths.items()])
    ).backward()
    for name, value in model.named_parameters():
        assert value.grad is not None, name
        assert value.grad.isfinite().all(), name
    assert all(not value.grad.any() for value in model.task_parts()["para"].parameters())
    model.zero_grad()
    laws.loss_of(model, pack_batch([(task, laws.random_rows(model, task, [])) for task in lengths])).backward()
    assert all(value.grad is not None and not value.grad.any() for value in model.parameters())


def test_only_chosen_layers_carry_adapters() -> None:
    model = MultiTaskBert(tiny_config(adapter_layers=[2]))
    assert list(model.adapters["sst"].attention) == ["2"]
    assert model.adapters["sst"].residual(0, torch.zeros(4, 24), torch.zeros(4, 24), one_row(4), False) is None
    laws.assert_everything_moves(model)


def test_tensor_core_preset() -> None:
    geometry = Geometry(encoder_hidden=768, layers=tuple(range(12)), hidden=192, heads=12, dropout=0.1)
    pal = Adapter.registry["pal"](geometry)
    assert geometry.hidden // geometry.heads == 16
    assert sum(parameter.numel() for parameter in pal.parameters()) == 768 * 192 * 2 + 192 + 768 + 12 * 3 * (
        192**2 + 192
    )


def test_waking_changes_nothing() -> None:
    """Identity at waking: a layer's gate is zero until it has been trained."""
    geometry = Geometry(encoder_hidden=24, layers=(0, 1, 2), hidden=12, heads=3, dropout=0.0)
    adapter = Adapter.registry["progressive_pal"](geometry).eval()
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter)
    torch.nn.init.zeros_(adapter.gates["1"])
    hidden, rows = torch.randn(5, 24), one_row(5)
    adapter.set_progress(0.0)
    assert adapter.residual(1, hidden, hidden, rows, False) is None
    assert adapter.residual(2, hidden, hidden, rows, False) is not None
    adapter.set_progress(0.25)
    assert not adapter.residual(1, hidden, hidden, rows, False).any()
