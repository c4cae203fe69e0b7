"""Laws 6 and 10 on a GPU: packed kernels are the plain form, with dropout too, and rows do not see each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pal_dist.data.batch import pack_batch
from pal_dist.models.attention_by_length import attention_by_length
from pal_dist.models.kernel_check import check_packed_kernel
from pal_dist.models.multi_task import MultiTaskBert
from pal_dist.models.packed_kernels import KERNELS
from pal_dist.models.packed_rows import PackedRows
from tests.support import laws
from tests.support.tiny_model import tiny_config

BOUNDS = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}
"""Of the difference's norm over the plain form's in float64."""

CASES = [(name, dtype) for dtype in BOUNDS for name in ("flash", "efficient", "by_length")]


def rows_on_gpu() -> PackedRows:
    lengths = np.sort(np.random.default_rng(0).integers(1, 129, 64)).astype(np.int32)[::-1].copy()
    starts = torch.tensor(np.cumsum([0, *lengths]), dtype=torch.int32, device="cuda")
    return PackedRows(starts, lengths)


def skip_where_there_is_none(name: str, dtype: torch.dtype) -> None:
    if name == "flash" and (dtype == torch.float32 or torch.cuda.get_device_capability() < (8, 0)):
        pytest.skip("flash attention: 16 bits, from capability 8.0 on")
    if dtype == torch.bfloat16 and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("bf16 is only emulated below capability 8.0")


@pytest.mark.parametrize(("name", "dtype"), CASES)
@pytest.mark.parametrize(("width", "first_only"), [(64, False), (64, True), (24, False)])
def test_outputs_and_gradients(name: str, dtype: torch.dtype, width: int, first_only: bool) -> None:
    skip_where_there_is_none(name, dtype)
    rows = rows_on_gpu()
    joined = torch.randn(rows.tokens, 2 if first_only else 3, 12, width, device="cuda", dtype=dtype)
    query = torch.randn(rows.count, 12, width, device="cuda", dtype=dtype) if first_only else None
    results = []
    for kernel, wide in ((KERNELS[name], dtype), (attention_by_length, torch.float64)):
        own = joined.to(wide).requires_grad_()
        context = kernel(None if query is None else query.to(wide), own, rows, p=0.0, scale=width**-0.5)
        (gradient,) = torch.autograd.grad(context.square().sum(), own)
        results.append((context.detach().double(), gradient.double()))
    for found, exact in zip(*results, strict=True):
        assert (found - exact).norm() < BOUNDS[dtype] * exact.norm()


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_dropout_has_the_right_mean_and_spread(name: str, dtype: torch.dtype) -> None:
    """All values 1: a context is the share of probability that was kept, scaled, whose mean is 1."""
    skip_where_there_is_none(name, dtype)
    rows, p = rows_on_gpu(), 0.1
    joined = torch.zeros(rows.tokens, 3, 12, 64, device="cuda", dtype=dtype)
    joined[:, 2] = 1
    kept = torch.stack([KERNELS[name](None, joined, rows, p=p, scale=1.0)[..., 0].double() for _ in range(20)])
    assert kept.mean().item() == pytest.approx(1.0, abs=0.005)
    # Each of L equal probabilities 1/L is kept or not: a variance of p / (1 - p) / L.
    lengths = torch.tensor(np.repeat(rows.lengths, rows.lengths), device="cuda", dtype=torch.float64)
    expected = p / (1 - p) / lengths
    assert (kept.var(dim=0).mean(dim=1).sum() / expected.sum()).item() == pytest.approx(1.0, rel=0.15)


@pytest.mark.parametrize("dtype", BOUNDS)
def test_the_check_at_start_finds_nothing(dtype: torch.dtype) -> None:
    for width in (64, 17):
        assert check_packed_kernel(torch.device("cuda", 0), dtype, heads=12, head_width=width)[1] == ""


@pytest.mark.parametrize("adapter", ["none", "pal", "lora", "houlsby_plus_pal"])
def test_a_prediction_does_not_depend_on_what_it_is_packed_with(adapter: str) -> None:
    model = MultiTaskBert(tiny_config(adapter)).cuda().eval()
    for parameter in model.adapters.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    rows = {task: laws.random_rows(model, task, [12, 7, 5]) for task in model.heads}
    together = model(pack_batch(list(rows.items())).to("cuda"))
    for logits, (task, own) in zip(together, rows.items(), strict=True):
        alone = model(pack_batch([(task, own)]).to("cuda"))[0]
        torch.testing.assert_close(alone, logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("adapter", ["none", "pal", "lhuc", "houlsby", "lora", "top_attention"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits_follow_float32(adapter: str, dtype: torch.dtype) -> None:
    skip_where_there_is_none("efficient", dtype)
    options = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "head_dropout": 0.0}
    model = MultiTaskBert(tiny_config(adapter, initializer_range=0.1, **options)).cuda().train()
    batch = pack_batch([(task, laws.random_rows(model, task, [12, 9, 5])) for task in model.heads]).to("cuda")
    gradients = []
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cuda", dtype, enabled=enabled):
            loss = laws.loss_of(model, batch)
        loss.backward()
        gradients.append(torch.cat([value.grad.flatten() for value in model.parameters()]))
    assert (gradients[1] - gradients[0]).norm() < 0.05 * gradients[0].norm()
