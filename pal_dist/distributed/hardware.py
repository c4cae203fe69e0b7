"""What this rank's device says of itself, as plain figures: the planner makes a device of them."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Hardware:
    """One rank's device, as PyTorch or the operating system reports it now."""

    name: str
    """As PyTorch reports it; `cpu` where there is no GPU."""
    memory: int
    """Bytes: all that a GPU has; of the host's free memory, this process's share."""
    capability: tuple[int, int] | None = None
    """CUDA compute capability; None: a CPU."""
    taken: int = 0
    """Bytes of a GPU that CUDA's context and other processes hold."""


def hardware_of(device: torch.device) -> Hardware:
    """The figures of this process's own device."""
    if device.type == "cpu":
        import psutil

        local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        return Hardware("cpu", int(psutil.virtual_memory().available) // local_ranks)
    properties = torch.cuda.get_device_properties(device)
    free, total = torch.cuda.mem_get_info(device)
    taken = total - free - torch.cuda.memory_reserved(device)
    return Hardware(properties.name, total, (properties.major, properties.minor), taken)


def named_compiler() -> str:
    """The compiler of C++ that the environment names; empty: it names none."""
    return os.environ.get("CXX", os.environ.get("CC", ""))
