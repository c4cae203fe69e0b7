"""How many kernels a GPU is given, counted without one: operators that PyTorch dispatches, each by what it launches.

The table says what one call of an operator launches on CUDA; operators that are not in it launch one kernel, views and
allocations none. cuBLAS may split a product in two launches, which is not counted: on an H100 a counted step launched
a quarter more (BENCHMARKS.md).
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

NOTHING = ("empty", "detach", "alias", "_unsafe_view", "lift", "view_as", "sym_", "is_", "device", "size", "stride")
"""Beginnings of names of operators that launch nothing, beside views."""

LAUNCHES = {
    "native_layer_norm_backward": 2,  # of the input; of weight and bias
    "_flash_attention_backward": 3,  # products of outputs and gradients; the gradients; queries' from float32
    "_efficient_attention_backward": 2,  # sums; the gradients
    "embedding_dense_backward": 8,  # keys, sorting (4), counting, sums, zeros (native/cuda/Embedding.cu)
    "slice_backward": 2,  # zeros and a copy
    "select_backward": 2,
    "index_add": 2,  # a copy and the sums
    "nll_loss_backward": 2,
    "softmax_backward": 1,
}

GROUPS = {
    "products": ("mm", "addmm", "bmm", "baddbmm", "matmul"),
    "attention": ("_flash_attention", "_efficient_attention", "_softmax", "unbind", "stack"),
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


def multi_tensor_launches(sizes: Sequence[int], *, lists: int) -> int:
    """Kernels of an operator over lists of tensors of so many elements."""
    count = tensors = blocks = 0
    for size in sizes:
        tensors += 1
        left = ceil_div(size, BLOCK_ELEMENTS)
        while blocks + left >= BLOCKS_PER_LAUNCH:
            left -= BLOCKS_PER_LAUNCH - blocks
            count, blocks, tensors = count + 1, 0, 1 if left else 0
        blocks += left
        if tensors == TENSORS_PER_LAUNCH[lists]:
            count, blocks, tensors = count + 1, 0, 0
    return count + (1 if tensors else 0)


class LaunchCounter(TorchDispatchMode):
    """`with LaunchCounter() as counter:` counts what is dispatched within, backward passes included."""

    def __init__(self) -> None:
        super().__init__()
        self.by_operator: Counter[str] = Counter()

    @property
    def total(self) -> int:
        return sum(self.by_operator.values())

    def by_group(self) -> dict[str, int]:
        """Kernels by what they are for, most first."""
        groups: Counter[str] = Counter()
        for name, count in self.by_operator.items():
            groups[_group_of(name)] += count
        return dict(groups.most_common())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.name().removeprefix("aten::").split(".")[0]
        self.by_operator[name] += self._launches(func, name, args)
        return result

    @staticmethod
    def _launches(func: Any, name: str, args: Any) -> int:
        if func.namespace == "prim" or func.is_view or name.startswith(NOTHING) or name in ("split", "unbind", "chunk"):
            return 0
        if name.startswith(("_foreach_", "_fused_adamw")):
            lists = [each for each in args if isinstance(each, (list, tuple)) and each and isinstance(each[0], Tensor)]
            sizes = [tensor.numel() for tensor in lists[0]]
            many = [each for each in lists if sum(part.numel() for part in each) >= sum(sizes)]
            count = multi_tensor_launches(sizes, lists=min(5, max(1, len(many))))
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

    return count_launches(whole)
