"""What this process's device says of itself."""

from __future__ import annotations

from types import SimpleNamespace

import psutil
import pytest
import torch

from pal_dist.distributed.hardware import hardware_of


def test_the_host_s_memory_is_shared_by_its_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=600))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    hardware = hardware_of(torch.device("cpu"))
    assert (hardware.name, hardware.memory, hardware.capability, hardware.taken) == ("cpu", 200, None, 0)
