"""Which attention kernel this process takes: the one that was asked for, or the quickest of those a GPU has.

It is chosen once, before a run, and never differently within it: a recorded pass keeps the kernels of its recording.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pal_dist.core.atomic_io import write_json
from pal_dist.core.errors import UserError
from pal_dist.models import packed_kernels
from pal_dist.models.packed_kernels import KERNELS, UNASKED, padded_head_width, suits
from pal_dist.models.packed_rows import PackedRows
from pal_dist.models.precision import KernelTarget, kernel_target

NAMES = {"plain": "by_length"}
"""Of kernels whose name as a setting is another."""

USUAL_HEAD = 64
"""Width of heads by which a device is asked before the model is known."""

MEASURED_FILE = "attention.json"
"""In the cache folder: the order of kernels by device, PyTorch, format and rows."""

MEASURED_TOKENS, ROUNDS, REPEATS = 4096, 5, 10


def choose_attention(
    asked: str,
    lengths: NDArray[np.int32],
    *,
    place: torch.device,
    dtype: torch.dtype,
    heads: int,
    head_width: int,
    cache_dir: Path,
) -> None:
    """Have the kernel that is `asked` for (`--attention`) looked at first from now on; `auto`: the quickest.

    Args:
        lengths: tokens of a run's rows, of which some are timed.
        cache_dir: where what was measured is kept.

    Raises UserError where the device does not have the one that is asked for.
    """
    probe = torch.empty(0, device=place, dtype=dtype)
    target = kernel_target(probe)
    width = padded_head_width(head_width, target)
    prefer(asked)
    if asked == "auto":
        own = [name for name in UNASKED if suits(name, target, dtype=dtype, head_width=width)]
        if len(own) > 1:
            packed_kernels.preferred[:] = _by_speed(own, lengths, place, dtype, heads, width, cache_dir)
        return
    check_has(asked, target, place=str(place), dtype=dtype, head_width=width)


def check_has(
    asked: str, target: KernelTarget, *, place: str, dtype: torch.dtype, head_width: int = USUAL_HEAD
) -> None:
    """Raises UserError where the device (`place`, in words) does not have the kernel of this setting."""
    if asked != "auto" and not suits(NAMES.get(asked, asked), target, dtype=dtype, head_width=head_width):
        raise UserError(
            f"--attention {asked}: {place} has no such kernel for heads of {head_width} in {dtype} (flash needs a GPU "
            f"of capability 8.0 and 16 bits, efficient a GPU); use auto, padded or plain"
        )


def prefer(asked: str) -> None:
    """Have this kernel looked at first in this process, as a setting names it; `auto`: the device's own."""
    packed_kernels.preferred[:] = UNASKED if asked == "auto" else [NAMES.get(asked, asked)]


def _by_speed(
    names: Sequence[str],
    lengths: NDArray[np.int32],
    place: torch.device,
    dtype: torch.dtype,
    heads: int,
    width: int,
    cache_dir: Path,
) -> list[str]:
    """The kernels, the quickest first; measured, or as it was measured before."""
    rows = lengths[: max(1, int(np.searchsorted(np.cumsum(lengths), MEASURED_TOKENS)))]
    mean = 1 << max(0, round(float(np.log2(rows.mean()))))
    device = torch.cuda.get_device_name(place) if place.type == "cuda" else place.type
    key = f"{device}, torch {torch.__version__}, {dtype}, {heads} heads of {width}, rows of about {mean}"
    file = cache_dir / MEASURED_FILE
    known = _measured(file)
    if sorted(known.get(key, [])) != sorted(names):
        seconds = {name: seconds_of(name, rows, place, dtype, heads, width) for name in names}
        known[key] = sorted(names, key=lambda name: seconds[name])
        write_json(file, known)
    return list(known[key])


def _measured(file: Path) -> dict[str, list[str]]:
    """What was measured before; nothing where the file is gone or damaged, for it is made again in a moment."""
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def seconds_of(
    name: str, lengths: NDArray[np.int32], place: torch.device, dtype: torch.dtype, heads: int, width: int
) -> float:
    """Of forward and backward over rows of these lengths, with dropout, in the quickest of some rounds; infinite for a
    kernel that fails."""
    starts = torch.tensor(np.cumsum([0, *lengths]), dtype=torch.int32, device=place)
    rows = PackedRows(starts, np.asarray(lengths, dtype=np.int32))
    times = []
    try:
        with torch.random.fork_rng([place] if place.type == "cuda" else []), torch.enable_grad():
            joined = torch.randn(rows.tokens, 3, heads, width, device=place, dtype=dtype, requires_grad=True)
            for _ in range(ROUNDS + 1):
                begun = time.perf_counter()
                for _ in range(REPEATS):
                    context = KERNELS[name](None, joined, rows, p=0.1, scale=width**-0.5)
                    torch.autograd.grad(context, joined, context.detach())
                if place.type == "cuda":
                    torch.cuda.synchronize(place)
                times.append(time.perf_counter() - begun)
    except RuntimeError:
        return float("inf")
    return min(times[1:])
