"""Whether the packed kernel that a device takes computes what the plain form computes; asked once, before a run.

A kernel that fails or errs is passed over from then on in this process, and the caller says so.
"""

from __future__ import annotations

import numpy as np
import torch

from pal_dist.models.attention_by_length import attention_by_length
from pal_dist.models.packed_kernels import (
    KERNELS,
    choose_packed_kernel,
    padded_head_width,
    unusable,
)
from pal_dist.models.packed_rows import PackedRows
from pal_dist.models.precision import kernel_target

LENGTHS = (37, 20, 20, 3, 1)
"""Tokens of the rows that are looked at."""

TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2, torch.float64: 1e-10}
"""Largest share by which outputs and gradients may be off, as norms. An H100 showed 5e-7, 3e-4 and 3e-3."""


def check_packed_kernel(place: torch.device, dtype: torch.dtype, *, heads: int, head_width: int) -> tuple[str, str]:
    """(the kernel that is used on the device for such heads, what was wrong with those that are not: empty if nothing).

    The plain form is in any case right.
    """
    problems: list[str] = []
    with torch.random.fork_rng([place] if place.type == "cuda" else []), torch.enable_grad():
        probe = torch.empty(0, device=place, dtype=dtype)
        width = padded_head_width(head_width, kernel_target(probe))
        while True:
            name = choose_packed_kernel(kernel_target(probe), dtype=dtype, head_width=width)
            problem = "" if name == "by_length" else _problem_of(name, place, dtype, heads, width)
            if not problem:
                return name, "; ".join(problems)
            unusable[name] = problem
            problems.append(f"{name}: {problem}")


def _problem_of(name: str, place: torch.device, dtype: torch.dtype, heads: int, width: int) -> str:
    """What is wrong with the kernel; empty: nothing."""
    lengths = np.array(LENGTHS, dtype=np.int32)
    starts = torch.tensor(np.cumsum([0, *LENGTHS]), dtype=torch.int32, device=place)
    rows = PackedRows(starts, lengths)
    for first_only in (False, True):
        joined = torch.randn(rows.tokens, 2 if first_only else 3, heads, width, device=place, dtype=dtype)
        query = torch.randn(rows.count, heads, width, device=place, dtype=dtype) if first_only else None
        results = []
        for kernel, wide in ((KERNELS[name], dtype), (attention_by_length, torch.float64)):
            own = joined.to(wide).requires_grad_()
            asking = None if query is None else query.to(wide)
            try:
                context = kernel(asking, own, rows, p=0.0, scale=width**-0.5)
                (gradient,) = torch.autograd.grad(context.square().sum(), own)
            except RuntimeError as error:
                return str(error).split("\n")[0][:200]
            results.append((context.detach().double(), gradient.double()))
        for found, exact in zip(*results, strict=True):
            off = float((found - exact).norm() / exact.norm())
            if not off <= TOLERANCE[dtype]:
                return f"off by {off:.1e} from the plain form, {TOLERANCE[dtype]:.0e} is allowed"
    return ""
