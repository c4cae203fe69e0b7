"""Which device's kernels the model's code is written for, and in which number format it computes.

Both are asked of here and nowhere else, so that a trace of fake CPU tensors can stand in for any GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class KernelTarget:
    """The device whose kernels work on a tensor."""

    device_type: str
    """`cpu` or `cuda`."""
    capability: tuple[int, int] | None = None
    """A GPU's compute capability."""
    attention: str = "sdpa"
    """`sdpa`: packed kernels where the device has them. `eager`: the plain form, which keeps every score."""

    @property
    def is_cuda(self) -> bool:
        return self.device_type == "cuda"


@dataclass(frozen=True)
class Emulation:
    """A GPU that CPU tensors stand for."""

    target: KernelTarget
    compute_dtype: Callable[[], torch.dtype | None] = lambda: None
    """Number format of the autocast that is on; None: none is."""
    autocast: Callable[[torch.dtype | None], AbstractContextManager[None]] | None = None
    """As `autocast` below."""
    on_weight_copies: Callable[[Iterable[Tensor]], None] = lambda _: None
    """Told of the copies of weights in 16 bits."""


_emulation: ContextVar[Emulation | None] = ContextVar("emulation", default=None)


@contextmanager
def emulate(emulation: Emulation) -> Iterator[None]:
    """Within, code takes the way it would take on such a device, whatever its tensors are (for traces of memory)."""
    token = _emulation.set(emulation)
    try:
        yield
    finally:
        _emulation.reset(token)


def kernel_target(tensor: Tensor) -> KernelTarget:
    """The device whose kernels work on the tensor."""
    emulation = _emulation.get()
    return _target_of(tensor.device) if emulation is None else emulation.target


@lru_cache
def _target_of(device: torch.device) -> KernelTarget:
    return KernelTarget(device.type, torch.cuda.get_device_capability(device) if device.type == "cuda" else None)


def compute_dtype(tensor: Tensor) -> torch.dtype | None:
    """The 16-bit format that autocast asks for on the tensor's device; None where it asks for none, or where the tensor
    is wider than float32, which nothing narrows."""
    if tensor.dtype == torch.float64:
        return None
    emulation, kind = _emulation.get(), tensor.device.type
    if emulation is not None:
        return emulation.compute_dtype()
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def autocast(tensor: Tensor, dtype: torch.dtype | None) -> AbstractContextManager[None]:
    """Within, PyTorch chooses the format of operations on the tensor's device, this one for matrix products; None:
    operations keep the format of what they are given."""
    emulation = _emulation.get()
    if emulation is not None and emulation.autocast is not None:
        return emulation.autocast(dtype)
    context: AbstractContextManager[None] = torch.autocast(tensor.device.type, dtype=dtype, enabled=dtype is not None)
    return context


def note_weight_copies(copies: Iterable[Tensor]) -> None:
    """Tell whoever counts memory what these tensors are."""
    emulation = _emulation.get()
    if emulation is not None:
        emulation.on_weight_copies(copies)
