"""The table of devices: memory, number formats, kernels."""

from __future__ import annotations

import pytest
import torch

from pal_dist.core.errors import UserError
from pal_dist.distributed.hardware import Hardware
from pal_dist.memory.devices import DEVICES, device_at_hand, find_device


def test_the_table() -> None:
    names = "t4 p100 v100-16 v100-32 a10g l4 rtx3090 rtx4090 a100-40 a100-80 h100 h200"
    assert set(DEVICES) >= set(names.split())
    for device in DEVICES.values():
        assert device.source
        assert 0 < device.usable < device.memory
        assert device.low_precision == ("bf16" if device.capability >= (8, 0) else "fp16")


def test_kernels() -> None:
    t4, a100 = find_device("T4"), find_device("a100_40")
    kernel = {"dtype": torch.float16, "head_width": 64, "masked": True}
    assert t4.attention_kernel(**kernel) == "efficient"
    assert t4.attention_kernel(**{**kernel, "head_width": 17}) == "math"  # a PAL of 204 with 12 heads, unpadded
    assert t4.attention_kernel(**{**kernel, "masked": False}) == "efficient"  # no flash before capability 8.0
    assert a100.attention_kernel(**{**kernel, "masked": False}) == "flash"
    assert a100.attention_kernel(**kernel) == "efficient"
    assert t4.attention_kernel(**{**kernel, "dtype": torch.bfloat16}) == "math"


def test_the_device_at_hand_keeps_its_own_figures() -> None:
    device = device_at_hand(Hardware("NVIDIA A100-SXM4-40GB", 42_000_000_000, (8, 0), taken=500_000_000))
    assert device.memory == 42_000_000_000
    assert device.bandwidth == DEVICES["a100-40"].bandwidth
    assert device_at_hand(Hardware("Tesla T4", 15_000_000_000, (7, 5))).teraflops_low == 65


def test_unknown_devices_are_named() -> None:
    with pytest.raises(UserError, match="known kinds are t4"):
        find_device("tpu")
