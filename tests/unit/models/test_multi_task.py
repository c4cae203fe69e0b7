"""The model against Transformers, against the authors' program, and against its laws."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

from pal_dist.config.schema import ModelConfig
from pal_dist.core.errors import UserError
from pal_dist.models.adapters import Adapter, Geometry
from pal_dist.models.convert import convert_files, convert_state_dict
from pal_dist.models.multi_task import MultiTaskBert, MultiTaskBertConfig, build_model, load_model
from pal_dist.tasks.registry import TASKS, resolve_tasks, task_to_dict
from tests.support import laws

TASKS_OF_THREE = ("sst", "para", "sts")


def tiny_config(adapter: str = "pal", **values: object) -> MultiTaskBertConfig:
    return MultiTaskBertConfig(
        **{
            "tasks": [task_to_dict(TASKS[name]) for name in TASKS_OF_THREE], "adapter": adapter, "adapter_hidden": 12,
            "adapter_heads": 3, "vocab_size": 90, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2,
            "intermediate_size": 48, "max_position_embeddings": 32, "initializer_range": 0.2,
        } | values
    )  # fmt: skip


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
    found, expected = (
        build_model(path, resolve_tasks(["sst"]), ModelConfig(adapter="none")) for path in (tmp_path, tiny_bert)
    )
    assert "has no pooler, so a new one is trained" in capsys.readouterr().err
    for name, value in expected.bert.state_dict().items():
        assert "pooler" in name or torch.equal(value, found.bert.state_dict()[name]), name


@pytest.mark.parametrize("kind", ["none", "pals", "low_rank", "houlsby", "houlsby_plus_pals"])
def test_golden_vectors_of_the_authors_program(kind: str, shared: Path) -> None:
    path = shared / "golden" / f"{kind}.safetensors"
    with safe_open(path, "pt") as file:
        facts = json.loads(file.metadata()["config"])
    golden = load_file(path)
    theirs = {name.removeprefix("param."): value for name, value in golden.items() if name.startswith("param.")}
    converted = convert_state_dict(theirs, list(TASKS_OF_THREE))
    config = tiny_config(
        converted.adapter, adapter_hidden=converted.adapter_hidden or 0,
        adapter_bottleneck=converted.adapter_bottleneck or 0, adapter_heads=facts["adapter_heads"] or 1,
        hidden_size=facts["hidden"], num_hidden_layers=facts["layers"], num_attention_heads=facts["heads"],
        intermediate_size=facts["intermediate"], layer_norm_eps=facts["layer_norm_eps"],
        vocab_size=theirs["bert.embeddings.word_embeddings.weight"].shape[0],
        max_position_embeddings=theirs["bert.embeddings.position_embeddings.weight"].shape[0],
    )  # fmt: skip
    model = MultiTaskBert(config).double().eval()
    model.load_state_dict(converted.state, strict=True)
    inputs = golden["input_ids"], golden["token_type_ids"], golden["attention_mask"].bool()
    for index, task in enumerate(TASKS_OF_THREE):
        adapter = model.adapters[task]
        hidden = model.bert(*inputs, adapter=adapter)
        first = model.bert(*inputs, adapter=adapter, first_only=True)
        pooled = model.pool(first, inputs[2])
        close = {"rtol": 0, "atol": 1e-9}
        torch.testing.assert_close(hidden, golden[f"out.last_hidden.{index}"], **close)
        torch.testing.assert_close(pooled, golden[f"out.pooled.{index}"], **close)
        torch.testing.assert_close(model.heads[task](pooled), golden[f"out.logits.{index}"], **close)
        seen = []
        hook = model.bert.encoder.layer[0].register_forward_hook(lambda module, given, out, seen=seen: seen.append(out))
        batch = laws.random_batch(model, task)._replace(
            input_ids_BL=inputs[0], token_type_ids_BL=inputs[1], mask_BL=inputs[2]
        )
        logits = model(batch)
        hook.remove()
        torch.testing.assert_close(seen[0], golden[f"out.first_hidden.{index}"], **close)
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
        {"name": f"t{index}", "files": {}, "text_a": "a", "label": "b",
         "metric": "pearson" if outputs == 1 else "accuracy",
         "objective": {"score": [0, 5]} if outputs == 1 else {"classes": outputs}}
        for index, outputs in enumerate(tasks)
    ]  # fmt: skip
    with torch.device("meta"):
        model = MultiTaskBert(
            MultiTaskBertConfig(tasks=entries, adapter=kind, adapter_hidden=Adapter.registry[kind].width)
        )
    adapters = sum(parameter.numel() for parameter in model.adapters.parameters())
    return model.parameter_counts()["total"] - adapters, adapters


def test_only_chosen_layers_carry_adapters() -> None:
    model = MultiTaskBert(tiny_config(adapter_layers=[2]))
    assert list(model.adapters["sst"].attention) == ["2"]
    assert model.adapters["sst"].residual(0, torch.zeros(1, 4, 24), torch.zeros(1, 4, 24), None, 4) is None
    laws.assert_everything_moves(model)


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


def test_tensor_core_preset() -> None:
    geometry = Geometry(encoder_hidden=768, layers=tuple(range(12)), hidden=192, heads=12, dropout=0.1)
    pal = Adapter.registry["pal"](geometry)
    assert geometry.hidden // geometry.heads == 16
    assert sum(parameter.numel() for parameter in pal.parameters()) == 768 * 192 * 2 + 192 + 768 + 12 * 3 * (
        192**2 + 192
    )


def test_one_task_file_carries_a_task_over(tmp_path: Path) -> None:
    from pal_dist.models.export import export_model

    model, other = MultiTaskBert(tiny_config()), MultiTaskBert(tiny_config())
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    export_model(
        model, tmp_path / "m", values=model.state_dict(), counts=model.parameter_counts(), source=tmp_path,
        card={"synthetic": True}, metrics={"sst": {"accuracy": 0.5}},
    )  # fmt: skip
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


def test_fast_dropout_has_the_right_statistics() -> None:
    from pal_dist.models.attention import dropout

    values = torch.full((1000, 1003), 2.0, requires_grad=True)
    found = dropout(values, 0.1, True)
    dropped = (found == 0).float().mean().item()
    assert dropped == pytest.approx(0.1, abs=0.002)
    assert found.mean().item() == pytest.approx(2.0, rel=0.002)
    assert found.max().item() == pytest.approx(2 / 0.9, rel=1e-4)
    found.sum().backward()
    torch.testing.assert_close(values.grad * 2, found.detach())
    rows = (found == 0).float().mean(dim=1)
    assert rows.std().item() < 0.02  # no row or column is favoured
    assert dropout(values, 0.1, False) is values


def test_attention_with_and_without_dropout_agree_in_expectation() -> None:
    from pal_dist.models.attention import attention

    q, k, v = torch.randn(3, 2, 7, 8)
    mask = torch.ones(2, 1, 1, 7, dtype=torch.bool)
    mask[1, :, :, 4:] = False
    exact = attention(q, k, v, mask, heads=2, p=0.0, training=True)
    torch.manual_seed(1)
    mean = sum(attention(q, k, v, mask, heads=2, p=0.1, training=True) for _ in range(3000)) / 3000
    torch.testing.assert_close(mean, exact, rtol=0.05, atol=0.05)


def test_padding_heads_for_fused_kernels_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from pal_dist.models import attention as room

    q, k, v = torch.randn(3, 2, 6, 34, dtype=torch.float64)  # two heads of 17, as a PAL's
    mask = torch.ones(2, 1, 1, 6, dtype=torch.bool)
    mask[0, :, :, 3:] = False
    plain = room.attention(q, k, v, mask, heads=2, p=0.0, training=False)
    monkeypatch.setattr(room, "head_multiple", lambda device: 8)
    padded = room.attention(q, k, v, mask, heads=2, p=0.0, training=False)
    torch.testing.assert_close(padded, plain, rtol=0, atol=1e-12)


class TestConvert:
    def test_tied_projections_listed_in_every_layer_must_agree(self) -> None:
        names = [f"bert.encoder.layer.{layer}.multi_layers.0.aug_dense.weight" for layer in range(2)]
        same, of_a_pal = torch.ones(3, 4), {"bert.encoder.layer.0.multi_layers.0.attn.key.bias": torch.ones(3)}
        found = convert_state_dict({**dict.fromkeys(names, same), **of_a_pal}, ["sst"])
        assert list(found.state) == ["adapters.sst.down.weight", "adapters.sst.attention.0.key.bias"]
        with pytest.raises(UserError, match="tied"):
            convert_state_dict({names[0]: same, names[1]: same + 1, **of_a_pal}, ["sst"])

    def test_attention_on_top_is_another_function(self) -> None:
        with pytest.raises(UserError, match="on top takes the encoder's place"):
            convert_state_dict({"bert.encoder.mult_dense.0.weight": torch.ones(3, 4)}, ["sst"])

    def test_gates(self) -> None:
        found = convert_state_dict({"bert.encoder.layer.3.multi_lhuc.0.lhuc": torch.ones(4)}, ["sst"])
        assert (found.adapter, list(found.state), found.adapter_layers) == ("lhuc", ["adapters.sst.gates.3"], [3])

    def test_unknown_names_are_named(self) -> None:
        with pytest.raises(UserError, match=r"mult\.houlsby"):
            convert_state_dict({"bert.encoder.layer.0.mult.houlsby.weight": torch.ones(1)}, ["sst"])
        with pytest.raises(UserError, match="only 1 tasks"):
            convert_state_dict({"classifier.3.bias": torch.ones(1)}, ["sst"])

    def test_whole_file(self, shared: Path, tmp_path: Path) -> None:
        golden = load_file(shared / "golden" / "pals.safetensors")
        state = {k.removeprefix("param."): v.float() for k, v in golden.items() if k.startswith("param.")}
        torch.save(state, tmp_path / "pytorch_model.bin")
        (tmp_path / "bert_config.json").write_text(json.dumps(
            {"vocab_size": 200, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
             "intermediate_size": 96, "max_position_embeddings": 64, "hidden_act": "gelu"}
        ))  # fmt: skip
        convert_files(
            tmp_path / "pytorch_model.bin", tmp_path / "bert_config.json", ["sst", "para", "sts"], tmp_path / "out"
        )
        model = load_model(tmp_path / "out").double().eval()
        inputs = golden["input_ids"], golden["token_type_ids"], golden["attention_mask"].bool()
        batch = laws.random_batch(model, "sst")._replace(
            input_ids_BL=inputs[0], token_type_ids_BL=inputs[1], mask_BL=inputs[2]
        )
        torch.testing.assert_close(model(batch), golden["out.logits.0"], rtol=0, atol=1e-5)
