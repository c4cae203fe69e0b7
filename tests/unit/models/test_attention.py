"""Attention within packed rows: against the formula, with dropout in expectation, with heads padded for a GPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pal_dist.models.attention import SelfAttention
from pal_dist.models.attention_by_length import attention_by_length
from pal_dist.models.packed_kernels import choose_packed_kernel, packed_attention, unusable
from pal_dist.models.packed_rows import PackedRows
from pal_dist.models.precision import Emulation, KernelTarget, emulate

LENGTHS = [5, 5, 3, 1, 1, 7]


def rows_of(lengths: list[int]) -> PackedRows:
    starts = torch.tensor(np.cumsum([0, *lengths]), dtype=torch.int32)
    return PackedRows(starts, np.array(lengths, dtype=np.int32))


def by_the_formula(joined: Tensor, *, scale: float, first_only: bool) -> Tensor:
    """softmax(q k^T scale) v, row by row."""
    contexts = []
    for row in joined.split(LENGTHS):
        query, key, value = (part.transpose(0, 1) for part in row.unbind(1))
        query = query[:, :1] if first_only else query
        contexts.append(((query @ key.mT * scale).softmax(-1) @ value).transpose(0, 1))
    return torch.cat(contexts)


@pytest.mark.parametrize("first_only", [False, True])
def test_output_and_gradient_are_the_formula_s(first_only: bool) -> None:
    rows = rows_of(LENGTHS)
    joined = torch.randn(rows.tokens, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    query = rows.first(joined[:, 0].flatten(1)).view(-1, 2, 4) if first_only else None
    context = packed_attention(query, joined[:, 1:] if first_only else joined, rows, p=0.0, scale=0.5)
    expected = by_the_formula(joined, scale=0.5, first_only=first_only)
    torch.testing.assert_close(context, expected, rtol=1e-12, atol=1e-12)
    given = torch.randn_like(context)
    (gradient,), (exact,) = (torch.autograd.grad(each, joined, given) for each in (context, expected))
    torch.testing.assert_close(gradient, exact, rtol=1e-12, atol=1e-12)


def test_the_gradient_under_dropout_is_that_of_the_masks_drawn() -> None:
    rows = rows_of(LENGTHS)
    joined = torch.randn(rows.tokens, 3, 2, 4, dtype=torch.float64, requires_grad=True)

    def dropped(values: Tensor) -> Tensor:
        torch.manual_seed(3)
        return attention_by_length(None, values, rows, p=0.3, scale=0.5)

    assert torch.autograd.gradcheck(dropped, (joined,))


def test_with_and_without_dropout_agree_in_expectation() -> None:
    rows = rows_of([7, 4])
    joined = torch.randn(rows.tokens, 3, 2, 4)
    exact = attention_by_length(None, joined, rows, p=0.0, scale=0.5)
    mean = sum(attention_by_length(None, joined, rows, p=0.1, scale=0.5) for _ in range(3000)) / 3000
    torch.testing.assert_close(mean, exact, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("first_only", [False, True])
def test_padding_heads_for_a_gpu_changes_nothing(first_only: bool) -> None:
    """Heads of 17, as a PAL's, are 24 wide in a GPU's kernels; here the plain form takes them so."""
    attention = SelfAttention(34, 2, 0.0).double()
    rows = rows_of(LENGTHS)
    hidden = torch.randn(rows.tokens, 34, dtype=torch.float64, requires_grad=True)
    results = []
    for emulated in (False, True):
        attention.zero_grad()
        gpu = Emulation(KernelTarget("cuda", (8, 0), attention="eager"))
        if emulated:
            with emulate(gpu):
                context = attention(hidden, rows, first_only)
        else:
            context = attention(hidden, rows, first_only)
        (to_hidden,) = torch.autograd.grad(context.square().sum(), hidden, retain_graph=True)
        context.square().sum().backward()
        results.append([context, to_hidden, *(value.grad.clone() for value in attention.parameters())])
    for plain, padded in zip(*results, strict=True):
        torch.testing.assert_close(padded, plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("capability", "dtype", "kernel"),
    [
        ((9, 0), torch.bfloat16, "flash"),
        ((8, 0), torch.float16, "flash"),
        ((8, 0), torch.float32, "efficient"),
        ((7, 5), torch.float16, "efficient"),
        ((9, 0), torch.float64, "by_length"),
        (None, torch.float32, "by_length"),
    ],
)
def test_kernel_by_device(
    capability: tuple[int, int] | None, dtype: torch.dtype, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = KernelTarget("cpu" if capability is None else "cuda", capability)
    assert choose_packed_kernel(target, dtype=dtype, head_width=64) == kernel
    monkeypatch.setitem(unusable, kernel, "it errs")
    assert choose_packed_kernel(target, dtype=dtype, head_width=64) in {"efficient", "by_length"}
