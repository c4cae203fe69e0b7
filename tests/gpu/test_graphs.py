"""Law 10 on the device: replayed CUDA graphs and compiled layers train what kernels one by one train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pal_dist.config.schema import RunConfig
from pal_dist.models.regions import why_not_compiled
from pal_dist.training.setup import set_up
from pal_dist.training.trainer import Trainer

FLAGS = {"max_steps": 20, "window_batches": 8, "evaluate_every": "none", "memory": "off", "adapter_hidden": 16}


def trained(run: RunConfig, cache_dir: Path) -> tuple[dict[str, torch.Tensor], Any]:
    trainer = Trainer(set_up(run, {}, cache_dir=cache_dir))
    trainer.fit()
    values = {name: value.detach().double().cpu() for name, value in trainer.engine.full_state_dict().items()}
    trainer.run.close()
    return values, trainer.graphs


def distance(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    off = sum(float((found[name] - value).square().sum()) for name, value in expected.items() if "key.bias" not in name)
    return (off / sum(float(value.square().sum()) for value in expected.values())) ** 0.5


@pytest.mark.parametrize("adapter", ["none", "pal", "progressive_pal", "houlsby", "lora"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_graphs_are_the_same_kernels(adapter: str, precision: str, tiny_run, cache_dir: Path, tmp_path: Path) -> None:
    """With dropout: `static` starts the kernels of the same sizes one by one."""
    if precision == "bf16" and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("bf16 is only emulated here")
    flags = FLAGS | {"adapter": adapter, "precision": precision, "dropout": 0.1, "batch_lengths": "even"}
    plain, _ = trained(tiny_run(**flags, cuda_graphs="static", output_dir=tmp_path / "plain"), cache_dir)
    graphed, graphs = trained(tiny_run(**flags, output_dir=tmp_path / "graphs"), cache_dir)
    assert graphs.replays > 5
    assert not graphs.failed
    # Some kernels add in any order: two plain runs are no nearer.
    assert distance(graphed, plain) < (1e-5 if precision == "fp32" else 1e-3)


def test_fixed_sizes_change_nothing(tiny_run, cache_dir: Path, tmp_path: Path) -> None:
    flags = FLAGS | {"precision": "fp32", "dropout": 0.0}
    packed, _ = trained(tiny_run(**flags, cuda_graphs="off", output_dir=tmp_path / "packed"), cache_dir)
    graphed, graphs = trained(tiny_run(**flags, output_dir=tmp_path / "graphs"), cache_dir)
    assert graphs.replays > 5
    assert distance(graphed, packed) < 1e-5


@pytest.mark.parametrize("graphs", ["off", "auto"])
def test_compiled_layers(graphs: str, tiny_run, cache_dir: Path, tmp_path: Path) -> None:
    if missing := why_not_compiled(torch.device("cuda"), ""):
        pytest.skip(missing)
    flags = FLAGS | {"precision": "fp32", "dropout": 0.1, "cuda_graphs": graphs}
    plain, _ = trained(tiny_run(**flags, compile="off", output_dir=tmp_path / "plain"), cache_dir)
    compiled, passes = trained(tiny_run(**flags, compile="on", output_dir=tmp_path / "compiled"), cache_dir)
    assert passes is None or not passes.failed
    assert distance(compiled, plain) < 1e-4


@pytest.mark.parametrize("kernel", ["efficient", "padded", "plain"])
def test_a_kernel_by_name(kernel: str, tiny_run, cache_dir: Path, tmp_path: Path) -> None:
    flags = FLAGS | {"precision": "fp32", "dropout": 0.0}
    usual, _ = trained(tiny_run(**flags, output_dir=tmp_path / "usual"), cache_dir)
    named, _ = trained(tiny_run(**flags, attention=kernel, output_dir=tmp_path / "named"), cache_dir)
    assert distance(named, usual) < 1e-5
