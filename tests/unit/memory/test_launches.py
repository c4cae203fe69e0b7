"""Kernels counted without a GPU: operators by what each launches."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pal_dist.memory.launches import BLOCK_ELEMENTS, LaunchCounter, count_launches, multi_tensor_launches


def test_a_block_forward_and_backward() -> None:
    weight, bias = torch.zeros(8, 8, requires_grad=True), torch.zeros(8, requires_grad=True)
    values = torch.ones(4, 8, requires_grad=True)

    def block() -> None:
        F.gelu(F.linear(values, weight, bias)).backward(torch.ones(4, 8))

    counter = count_launches(block)
    # Forward: the product, GELU. Backward: the gradient that is given, GELU, two products, the bias's sum.
    assert counter.by_group() == {
        "products": 3,
        "activation": 2,
        "sums for biases": 1,
        "losses and the rest": 1,
    }
    assert counter.total == 7


def test_a_block_with_dropout_and_layer_norm() -> None:
    weight, bias = torch.zeros(8, 8, requires_grad=True), torch.zeros(8, requires_grad=True)
    scale, shift = torch.ones(8, requires_grad=True), torch.zeros(8, requires_grad=True)
    values, gradient = torch.ones(4, 8, requires_grad=True), torch.ones(4, 8)

    def block() -> None:
        inner = torch.native_dropout(F.gelu(F.linear(values, weight, bias)), 0.1, True)[0]
        F.layer_norm(values + inner, (8,), scale, shift).backward(gradient)

    counter = count_launches(block)
    assert counter.by_operator["native_layer_norm_backward"] == 2
    # Forward: product, GELU, dropout, residual, LayerNorm. Backward: LayerNorm (2), dropout, GELU, two products, the
    # bias's sum, and the sum of both gradients that meet at `values`.
    assert counter.by_group() == {
        "products": 3,
        "LayerNorm": 3,
        "dropout": 2,
        "activation": 2,
        "sums of residuals and gradients": 2,
        "sums for biases": 1,
    }


def test_a_packed_attention_without_its_derivative_is_given_one() -> None:
    counter = LaunchCounter()
    counter.by_operator["_flash_attention_forward"] = 12
    counter.count_derivatives_of_attention()
    counter.count_derivatives_of_attention()
    assert counter.total == 12 + 36


def test_views_and_allocations_launch_nothing() -> None:
    values = torch.ones(4, 6)

    def views() -> None:
        values.view(2, 12).t().unbind()
        values.split([1, 3])
        values.split_with_sizes([1, 3])
        values.chunk(2)
        values.transpose(0, 1).expand(2, 6, 4).select(0, 1)
        torch.empty(3)
        values.new_empty(3)
        torch.empty_like(values)
        with torch.profiler.record_function("a mark"):
            torch.promote_types(torch.bfloat16, torch.float32)
        values.detach()[1:]

    assert count_launches(views).total == 0


@pytest.mark.parametrize(
    ("sizes", "lists", "kernels"),
    [
        ([1], 1, 1),
        ([1] * 110, 1, 1),
        ([1] * 111, 1, 2),
        ([1] * 37, 4, 2),
        ([BLOCK_ELEMENTS * 100] * 3, 2, 1),
        ([BLOCK_ELEMENTS * 100] * 4, 2, 2),
        ([BLOCK_ELEMENTS * 1000], 4, 4),
    ],
)
def test_lists_of_tensors(sizes: list[int], lists: int, kernels: int) -> None:
    assert multi_tensor_launches(sizes, lists=lists) == kernels


def test_empty_tensors_and_large_arguments() -> None:
    assert multi_tensor_launches([0, 0], lists=1) == 0
    assert multi_tensor_launches([0] * 30 + [1] * 36, lists=4) == 1
    assert multi_tensor_launches([1] * 252, lists=4, large_arguments=True) == 1
    assert multi_tensor_launches([BLOCK_ELEMENTS * 2240, 1], lists=4, large_arguments=True) == 2


def test_an_update_is_few_kernels() -> None:
    parameters = [torch.zeros(10, requires_grad=True) for _ in range(72)]
    update = torch.optim.AdamW(parameters, fused=True)
    for parameter in parameters:
        parameter.grad = torch.ones(10)
    update.step()
    with LaunchCounter() as counter:
        update.step()
    assert counter.by_operator["_fused_adamw_"] == 2  # parameters, gradients, two moments: 36 of each a launch
