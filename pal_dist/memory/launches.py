"""How many kernels a GPU is given, counted without one: operators that PyTorch dispatches, each by what it launches.

The table says what one call of an operator launches on CUDA; operators that are not in it launch one kernel, views and
allocations none. cuBLAS may split a product in two launches, which is not counted: on an H100 a step launched 11 to
14 % more than is counted (BENCHMARKS.md).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pal_dist.core.units import ceil_div

TENSORS_PER_LAUNCH = {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}
BLOCKS_PER_LAUNCH, BLOCK_ELEMENTS = 320, 65536
"""Of kernels over lists of tensors, by the number of lists (aten/src/ATen/native/cuda/MultiTensorApply.cuh)."""

LARGE_ARGUMENTS = 7
"""Times as many tensors and blocks where kernels take 32 KiB of arguments, not 4: builds for CUDA 13 since PyTorch's
pull request 178641 (2.13 has it; 2.11, with which BENCHMARKS.md measured, came before it)."""

NOTHING = (
    *("empty", "new_empty", "detach", "alias", "_unsafe_view", "lift", "view_as", "sym_", "is_", "device", "size"),
    *("stride", "promote_types", "result_type"),
)
"""Beginnings of names of operators that launch nothing, beside views."""

HOST_NAMESPACES = ("prim", "profiler")
"""Operators of the host: queries and the profiler's marks."""

LAUNCHES = {
    "native_layer_norm_backward": 2,  # of the input; of weight and bias
    "_flash_attention_backward": 3,  # products of outputs and gradients; the gradients; queries' from float32
    "_efficient_attention_backward": 2,  # sums; the gradients
    "_scaled_dot_product_flash_attention_backward": 3,
    "_scaled_dot_product_efficient_attention_backward": 2,
    "embedding_dense_backward": 8,  # keys, sorting (4), counting, sums, zeros (native/cuda/Embedding.cu)
    "slice_backward": 2,  # zeros and a copy
    "select_backward": 2,
    "index_add": 2,  # a copy and the sums
    "nll_loss_backward": 2,
    "binary_cross_entropy_with_logits": 5,  # log-sigmoid, one minus, product, difference, sum (native/Loss.cpp)
    "mse_loss": 2,  # squares, sum
    "softmax_backward": 1,
}

GROUPS = {
    "products": ("mm", "addmm", "bmm", "baddbmm", "matmul"),
    "attention": ("_flash_attention", "_efficient_attention", "_scaled_dot", "_softmax", "unbind", "stack"),
    "LayerNorm": ("native_layer_norm",),
    "dropout": ("native_dropout",),
    "activation": ("gelu", "tanh", "relu", "silu"),
    "sums for biases": ("sum",),
    "sums of residuals and gradients": ("add",),
    "side by side": ("cat",),
    "formats and copies": ("_to_copy", "copy_", "_foreach_copy_", "clone", "zeros", "new_zeros", "slice_backward"),
    "embeddings": ("embedding", "index_select", "index_add", "arange"),
    "update": ("_fused_adamw", "_foreach_norm", "linalg_vector_norm", "_foreach_add", "_foreach_mul", "clamp"),
}
"""Beginnings of names; what is in none is `losses and the rest`."""


def multi_tensor_launches(sizes: Sequence[int], *, lists: int, large_arguments: bool = False) -> int:
    """Kernels of an operator over lists of tensors of so many elements; empty ones take no part."""
    factor = LARGE_ARGUMENTS if large_arguments else 1
    most_tensors, most_blocks = factor * TENSORS_PER_LAUNCH[lists], factor * BLOCKS_PER_LAUNCH
    count = tensors = blocks = 0
    for size in filter(None, sizes):
        tensors += 1
        left = ceil_div(size, BLOCK_ELEMENTS)
        while blocks + left >= most_blocks:
            left -= most_blocks - blocks
            count, blocks, tensors = count + 1, 0, 1 if left else 0
        blocks += left
        if tensors == most_tensors:
            count, blocks, tensors = count + 1, 0, 0
    return count + (1 if tensors else 0)


class LaunchCounter(TorchDispatchMode):
    """`with LaunchCounter() as counter:` counts what is dispatched within, backward passes included.

    Args:
        large_arguments: of the PyTorch build that is counted for, see `LARGE_ARGUMENTS`.
    """

    def __init__(self, *, large_arguments: bool = False) -> None:
        super().__init__()
        self.large_arguments = large_arguments
        self.by_operator: Counter[str] = Counter()

    @property
    def total(self) -> int:
        return sum(self.by_operator.values())

    def by_group(self) -> dict[str, int]:
        """Kernels by what they are for, most first."""
        groups: Counter[str] = Counter()
        for name, count in (+self.by_operator).items():
            groups[_group_of(name)] += count
        return dict(groups.most_common())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.name().removeprefix("aten::").split(".")[0]
        self.by_operator[name] += self._launches(func, name, args)
        return result

    def count_derivatives_of_attention(self) -> None:
        """Add one derivative for each packed attention that has none: on tensors without a GPU a stand-in that only
        allocates takes its place (models/packed_kernels.py). Right where every layer is trained, none computed again.
        """
        for kernel in ("_flash_attention", "_efficient_attention"):
            backward = f"{kernel}_backward"
            if not self.by_operator[backward]:
                self.by_operator[backward] = LAUNCHES[backward] * self.by_operator[f"{kernel}_forward"]

    def _launches(self, func: Any, name: str, args: Any) -> int:
        if func.namespace in HOST_NAMESPACES or func.is_view or name.startswith(NOTHING):
            return 0
        if name.startswith(("_foreach_", "_fused_adamw")):
            lists = [each for each in args if isinstance(each, (list, tuple)) and each and isinstance(each[0], Tensor)]
            sizes = [tensor.numel() for tensor in lists[0]]
            many = [each for each in lists if sum(part.numel() for part in each) >= sum(sizes)]
            count = multi_tensor_launches(sizes, lists=min(5, max(1, len(many))), large_arguments=self.large_arguments)
            return count + (1 if name == "_foreach_norm" else 0)  # and one that gathers the pieces
        return LAUNCHES.get(name, 1)


def _group_of(name: str) -> str:
    for group, beginnings in GROUPS.items():
        if name.startswith(beginnings):
            return group
    return "losses and the rest"


def count_launches(function: Callable[[], object]) -> LaunchCounter:
    """What a call of the function launches."""
    with LaunchCounter() as counter:
        function()
    return counter


def step_launches(model: torch.nn.Module, step: Callable[[], Tensor], update: torch.optim.Optimizer) -> LaunchCounter:
    """Of one optimizer step: `step` gives its loss; then backward, clipping and update as training does them."""

    def whole() -> None:
        step().backward()
        gradients = [value.grad for value in model.parameters() if value.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients, foreach=True)  # as on a GPU
        update.grad_scale = (norm + 1e-6).clamp(min=1.0)  # type: ignore[attr-defined]
        update.step()

    counter = count_launches(whole)
    counter.count_derivatives_of_attention()
    return counter
