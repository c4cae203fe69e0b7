"""The parts of a layer that move much and compute little, each of which can be one compiled kernel.

One function serves all layers, compiled once, whatever the number of tokens. Dropout stays outside: its masks are then
those of the plain form, and a recorded pass draws them as always (random numbers within compiled code could not be
captured on an H100). Products stay the library's.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Activation = Callable[[Tensor], Tensor]

TOLERANCE = 2e-2
"""Relative, of outputs and gradients in 16 bits; in float32 a hundredth of it."""

PROBE_TOKENS, PROBE_WIDTH = 48, 64


class Regions(NamedTuple):
    """Functions that a layer calls."""

    add_norm: Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]
    """(values, residual, weight, bias, eps) -> LayerNorm of the sum, (T, D)."""
    activated: Callable[[Activation, Tensor, Tensor, Tensor], Tensor]
    """(activation, values, weight, bias) -> activation of the linear layer, (T, F)."""


def _add_norm(values: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return F.layer_norm(values + residual, weight.shape, weight, bias, eps)


def _activated(activation: Activation, values: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return activation(F.linear(values, weight, bias))


PLAIN = Regions(_add_norm, _activated)


@lru_cache
def compiled() -> Regions:
    """The same, compiled when they are first called; once a process."""
    # The compiler looks at every argument's gradient, of which only leaves have one.
    warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
    add_norm, activated = torch.compile(_add_norm), torch.compile(_activated)

    def add_norm_of_any_length(values: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        for tensor in (values, residual):
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
        result: Tensor = add_norm(values, residual, weight, bias, eps)
        return result

    def activated_of_any_length(activation: Activation, values: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        torch._dynamo.maybe_mark_dynamic(values, 0)
        result: Tensor = activated(activation, values, weight, bias)
        return result

    return Regions(add_norm_of_any_length, activated_of_any_length)


def why_not_compiled(place: torch.device, named: str) -> str:
    """What is missing to compile for this device, and how to get it; empty: nothing.

    Args:
        named: a compiler that the environment names; empty: it names none.
    """
    if place.type == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            return "there is no Triton for this GPU (pip install triton; it needs capability 7.0)"
    names = [named, "g++", "clang++", *(("gcc", "cc", "clang") if place.type == "cuda" else ())]
    if not any(name and shutil.which(name) for name in names):
        return "there is no C++ compiler (apt install g++, or conda install gxx; CXX names another)"
    return ""


def problem_of_compiled(place: torch.device, dtype: torch.dtype, activation: Activation) -> str:
    """Compile for this device and format and compare with the plain form; what is wrong, empty: nothing."""
    with torch.random.fork_rng([place] if place.type == "cuda" else []), torch.enable_grad():
        shapes = [(PROBE_TOKENS, PROBE_WIDTH)] * 2 + [(PROBE_WIDTH, PROBE_WIDTH), (PROBE_WIDTH,), (PROBE_WIDTH,)]
        drawn = [torch.randn(shape, device=place).to(dtype) for shape in shapes]
        results = []
        for regions in (PLAIN, compiled()):
            values, residual, weight, bias, norm = (tensor.clone().requires_grad_() for tensor in drawn)
            try:
                wide = regions.activated(activation, values, weight, bias)
                normed = regions.add_norm(wide, residual, norm, bias, 1e-12)
                gradients = torch.autograd.grad(normed.float().square().sum(), [values, residual, weight, norm])
            except Exception as error:  # whatever a compiler has to say
                return str(error).strip().split("\n")[0][:200] or type(error).__name__
            results.append([normed.detach(), *gradients])
        bound = TOLERANCE if dtype in (torch.float16, torch.bfloat16) else TOLERANCE / 100
        for plain, other in zip(*results, strict=True):
            off = float((plain - other).double().norm() / plain.double().norm())
            if not off <= bound:
                return f"off by {off:.1e} from the plain form, {bound:.0e} is allowed"
    return ""
