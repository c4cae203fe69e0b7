"""A CUDA device's semantics on CPU tensors: which copies autocast makes, what dropout and attention keep for backward.

On a CPU PyTorch's autocast has other lists, dropout keeps a float mask, and attention has other kernels, so a trace of
fake CPU tensors alone would count other bytes than a GPU allocates. This mode intercepts those functions and calls what
a GPU would. (Fake *CUDA* tensors need a CUDA build and a driver to run a backward pass.)

Sources: aten/src/ATen/autocast_mode.h (lists), native/transformers/cuda/sdp_utils.cpp (kernels), Dropout.cpp.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from pal_dist.memory.devices import Device

Function = Callable[..., Any]


def _forms(names: str) -> set[Function]:
    """The functions of these names, written with spaces between them, wherever PyTorch offers them."""
    places = (torch, F, Tensor, torch._C._nn)
    return {getattr(place, name) for place in places for name in names.split() if hasattr(place, name)}


LOW = _forms(
    """
    matmul __matmul__ __rmatmul__ mm mv bmm addmm addmv addr addbmm baddbmm linear einsum chain_matmul conv1d
    conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d prelu bilinear
    """
)
"""Autocast runs these in the low precision."""

HIGH = _forms(
    """
    softmax log_softmax layer_norm group_norm cross_entropy nll_loss mse_loss l1_loss smooth_l1_loss huber_loss
    kl_div binary_cross_entropy_with_logits cosine_embedding_loss cosine_similarity exp expm1 log log10 log2 log1p
    pow __pow__ __rpow__ reciprocal rsqrt norm sum prod cumsum cumprod renorm cdist logsumexp softmin softplus tan
    acos asin cosh sinh erfinv
    """
)
"""Autocast runs these in float32."""


def _opened(function: Any) -> Function:
    """The same Python function with its own interception switched off, so that what it calls is intercepted instead."""
    names = {**function.__globals__, "has_torch_function": lambda *_: False}
    opened = types.FunctionType(function.__code__, names, argdefs=function.__defaults__)
    opened.__kwdefaults__ = function.__kwdefaults__
    return opened


_MULTI_HEAD, _BACKWARD = F.multi_head_attention_forward, torch.autograd.backward
_OPENED = {_MULTI_HEAD: _opened(_MULTI_HEAD), _BACKWARD: _opened(_BACKWARD)}
_SOFTMAX, _DROPOUT = _forms("softmax"), _forms("dropout")


class CudaEmulation(TorchFunctionMode):
    """`with CudaEmulation(device):` CPU tensors (fake ones, most often) behave as if on that GPU.

    Args:
        device: the GPU, whose kernels are chosen as PyTorch would choose them.
        attention: `sdpa`: scaled_dot_product_attention takes the GPU's own kernel. `eager`: always the unfused one,
            which keeps every score.
        on_weight_copy: called with each half-precision copy of a weight that autocast keeps.
        softmax_keeps_input: PyTorch before 1.11 kept softmax's input beside its output.
    """

    def __init__(
        self,
        device: Device,
        *,
        attention: str = "sdpa",
        on_weight_copy: Callable[[Tensor], None] | None = None,
        softmax_keeps_input: bool = False,
    ):
        super().__init__()
        self.device, self.attention = device, attention
        self.on_weight_copy, self.softmax_keeps_input = on_weight_copy, softmax_keeps_input
        self.low: torch.dtype | None = None
        self._depth = 0
        self._copies: dict[int, tuple[Tensor, Tensor]] = {}  # id of a weight -> (the weight, its copy)

    @contextmanager
    def autocast(self, dtype: torch.dtype | None) -> Iterator[None]:
        """As torch.autocast("cuda", dtype); None: none. Copies of weights are forgotten when the outermost ends."""
        before, self.low = self.low, dtype
        self._depth += 1
        try:
            yield
        finally:
            self.low = before
            self._depth -= 1
            if not self._depth:
                self.forget_copies()

    def forget_copies(self) -> None:
        """Drop the cache of weights' copies; those that the graph holds stay alive."""
        self._copies.clear()

    def __torch_function__(self, func: Function, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _OPENED:  # backward too: layers that are computed again are emulated like the first time
            with self:
                return _OPENED[func](*args, **kwargs)
        if func is Tensor.backward:
            with self:
                return _backward(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            with self:
                return self._attention(*args, **kwargs)
        if func in _DROPOUT:
            return _dropout(*args, **kwargs)
        if self.low is not None and func in LOW:
            args, kwargs = self._lowered(args), self._lowered(kwargs)
        elif self.low is not None and func in HIGH:
            args, kwargs = _raised(args), _raised(kwargs)
        if self.softmax_keeps_input and func in _SOFTMAX:
            return _OldSoftmax.apply(args[0], kwargs.get("dim", args[1] if len(args) > 1 else -1))
        return func(*args, **kwargs)

    def _lowered(self, values: Any) -> Any:
        return tree_map_only(Tensor, self._low_copy, values)

    def _low_copy(self, tensor: Tensor) -> Tensor:
        """The tensor in low precision; a weight's copy is made once and kept, as autocast's cache does."""
        if not tensor.is_floating_point() or tensor.dtype in (self.low, torch.float64):
            return tensor
        if not (tensor.is_leaf and tensor.requires_grad and tensor.dtype == torch.float32):
            return tensor.to(self.low)
        if id(tensor) not in self._copies:
            copy = tensor.to(self.low)
            if self.on_weight_copy:
                self.on_weight_copy(copy)
            self._copies[id(tensor)] = tensor, copy
        return self._copies[id(tensor)][1]

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """scaled_dot_product_attention by the kernel that the GPU would choose."""
        query, key, value = (self._lowered(x) if self.low is not None else x for x in (query, key, value))
        kernel = self.device.attention_kernel(
            dtype=query.dtype, head_width=query.shape[-1], masked=attn_mask is not None
        )
        if self.attention == "eager" or kernel == "math" or enable_gqa:
            return self._eager(query, key, value, attn_mask, dropout_p, is_causal, scale)
        bias = attn_mask
        if bias is not None and bias.dtype == torch.bool:
            bias = torch.zeros(bias.shape, dtype=query.dtype).masked_fill_(bias.logical_not(), float("-inf"))
        if bias is not None and bias.shape[-1] % 8:  # the kernel reads aligned rows (preprocess_mask)
            bias = F.pad(bias, (0, -bias.shape[-1] % 8))[..., : bias.shape[-1]]
        if kernel == "flash":
            if query.shape[-1] % 8:
                width = query.shape[-1]
                scale = scale or width**-0.5
                query, key, value = (F.pad(x, (0, -width % 8)) for x in (query, key, value))
                return self._flash(query, key, value, dropout_p, is_causal, scale)[..., :width]
            return self._flash(query, key, value, dropout_p, is_causal, scale)
        if bias is not None:
            bias = bias.expand(*query.shape[:-1], key.shape[-2])
        context: Tensor = torch.ops.aten._scaled_dot_product_efficient_attention(
            query, key, value, bias, query.requires_grad, dropout_p, is_causal, scale=scale
        )[0]
        return context

    @staticmethod
    def _flash(query: Tensor, key: Tensor, value: Tensor, p: float, causal: bool, scale: float | None) -> Tensor:
        context: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(
            query, key, value, p, causal, False, scale=scale
        )[0]
        return context

    @staticmethod
    def _eager(
        query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, p: float, causal: bool, scale: float | None
    ) -> Tensor:
        """As BERT's own programs write it: scores, mask, softmax, dropout, context. Every score is kept."""
        scores = torch.matmul(query, key.transpose(-1, -2)) * (scale or query.shape[-1] ** -0.5)
        if causal:
            mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        if mask is not None:
            bias = mask if mask.dtype != torch.bool else torch.zeros(mask.shape, dtype=scores.dtype)
            scores = scores + bias
        return torch.matmul(F.dropout(F.softmax(scores, dim=-1), p), value)


class _OldSoftmax(torch.autograd.Function):
    """softmax that keeps input and output for backward (pytorch issues 49600 and 64000)."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, dim: int) -> Tensor:
        result = values.softmax(dim)
        ctx.save_for_backward(values, result)
        ctx.dim = dim
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        values, result = ctx.saved_tensors
        return torch.ops.aten._softmax_backward_data(gradients[0], result, ctx.dim, values.dtype), None


def _backward(
    loss: Tensor,
    gradient: Tensor | None = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    inputs: Any = None,
) -> None:
    _BACKWARD(loss, gradient, retain_graph, create_graph, inputs=inputs)


def _dropout(values: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """The fused kernel, which keeps one byte an element."""
    if not training or p == 0.0:
        return values
    result: Tensor = torch.native_dropout(values, p, True)[0]
    return values.copy_(result) if inplace else result


def _raised(values: Any) -> Any:
    return tree_map_only(Tensor, lambda x: x.float() if x.dtype in (torch.float16, torch.bfloat16) else x, values)
