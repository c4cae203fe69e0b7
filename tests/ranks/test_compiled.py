"""Law 10 for compiled layers: they train what plain ones train, with the same masks, and keep no more for backward."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import pal_dist.training.compile_choice
from pal_dist.core.errors import UserError
from pal_dist.models.regions import PLAIN, Regions, compiled, problem_of_compiled, why_not_compiled
from pal_dist.training.setup import set_up
from pal_dist.training.trainer import Trainer

HAS_COMPILER = not why_not_compiled(torch.device("cpu"), "")

needs_compiler = pytest.mark.skipif(not HAS_COMPILER, reason="needs a C++ compiler")


@needs_compiler
@pytest.mark.long
def test_compiled_layers_train_what_plain_ones_train(tiny_run, cache_dir: Path, tmp_path: Path) -> None:
    """With dropout, checkpointing, an adapter that reaches in, and fixed sizes."""
    values = {}
    for name in ("off", "on"):
        flags = {"dropout": 0.1, "checkpoint_layers": 2, "adapter": "houlsby_plus_pal", "cuda_graphs": "static"}
        trainer = Trainer(set_up(tiny_run(**flags, compile=name, output_dir=tmp_path / name), {}, cache_dir=cache_dir))
        trainer.fit()
        trainer.run.close()
        values[name] = {key: value.detach().numpy() for key, value in trainer.engine.full_state_dict().items()}
    for key, value in values["off"].items():
        if "key.bias" not in key:
            np.testing.assert_allclose(values["on"][key], value, rtol=0, atol=2e-5, err_msg=key)


def saved_bytes(regions: Regions, tokens: int) -> int:
    """What a layer's parts keep for backward, beside parameters."""
    torch.manual_seed(0)
    shapes = [(tokens, 64), (tokens, 64), (64, 64), (64,), (64,)]
    values, residual, weight, bias, norm = (torch.randn(shape, requires_grad=True) for shape in shapes)
    own = {tensor.untyped_storage().data_ptr() for tensor in (weight, bias, norm)}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        attended = regions.add_norm(values, residual, norm, bias, 1e-12)
        fed = regions.activated(F.gelu, attended, weight, bias)
        result = regions.add_norm(fed, attended, norm, bias, 1e-12)
    result.sum().backward()
    return sum(kept.values())


@needs_compiler
@pytest.mark.long
def test_compiled_layers_keep_no_more(tiny_run) -> None:
    """So what was planned is not exceeded."""
    for tokens in (48, 200):
        assert saved_bytes(compiled(), tokens) <= saved_bytes(PLAIN, tokens)


@needs_compiler
def test_one_function_serves_any_length() -> None:
    from torch._dynamo.utils import counters

    counters.clear()
    for tokens in (7, 48, 100, 1000, 5, 33):
        values = torch.randn(tokens, 64, requires_grad=True)
        compiled().add_norm(values, values, torch.ones(64), torch.zeros(64), 1e-12).sum().backward()
    assert counters["stats"]["unique_graphs"] <= 2
    assert not counters["graph_break"]


def test_what_is_missing_is_said(tiny_run, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("CC", raising=False)
    assert "apt install g++" in why_not_compiled(torch.device("cpu"), "")
    with pytest.raises(UserError, match="--compile on: there is no C"):
        set_up(tiny_run(compile="on"), {}, cache_dir=cache_dir)


def test_a_compiler_that_errs_is_found(tiny_run, cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = Regions(lambda *arguments: PLAIN.add_norm(*arguments) * 1.1, PLAIN.activated)
    monkeypatch.setattr("pal_dist.models.regions.compiled", lambda: wrong)
    assert "from the plain form" in problem_of_compiled(torch.device("cpu"), torch.float32, F.gelu)
    monkeypatch.setattr(pal_dist.training.compile_choice, "why_not_compiled", lambda *_: "")
    with pytest.raises(UserError, match="off by"):
        set_up(tiny_run(compile="on"), {}, cache_dir=cache_dir)
