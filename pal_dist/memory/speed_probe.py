"""What the device at hand can do, measured in a second: matrix products, memory, and the host that gives it work.

With these in place of data sheets the estimate of a step's time is within a fifth (tests/bench/step_time.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from pal_dist.memory.closed_form import shape_of
from pal_dist.memory.devices import Device
from pal_dist.memory.planner import batch_of_size, loss_of_segments
from pal_dist.memory.step_time import launches
from pal_dist.memory.trace import DTYPES
from pal_dist.models.multi_task import MultiTaskBert, MultiTaskBertConfig
from pal_dist.tasks.registry import TASKS, task_to_dict

ROUNDS = 5

PRODUCT = {"cpu": (1024, 384, 1536), "cuda": (8192, 768, 3072)}
"""(rows, inputs, outputs) of a feed-forward block's product."""

COPIED = {"cpu": 1 << 24, "cuda": 1 << 28}
"""Elements in float32."""


@dataclass(frozen=True)
class MeasuredSpeed:
    """Of one device."""

    flops_low: float
    flops_fp32: float
    """Operations a second of matrix products, in the device's low precision and in float32."""
    bandwidth: float
    """Bytes a second that its memory is read and written with."""
    launch: float
    """Seconds that the host takes for one kernel of ours."""


def with_measured_speed(device: Device, place: torch.device) -> Device:
    """The same device with speeds measured where it is: `place`."""
    measured = measure_speed(place, device.low_precision)
    return replace(
        device,
        teraflops_low=measured.flops_low / 1e12,
        teraflops_fp32=measured.flops_fp32 / 1e12,
        bandwidth=measured.bandwidth / 1e9,
        launch=measured.launch,
        is_measured=True,
    )


@lru_cache
def measure_speed(place: torch.device, low_precision: str) -> MeasuredSpeed:
    """Measure once a process. Draws no random numbers that a run would miss."""
    with torch.random.fork_rng(), torch.no_grad():
        low = DTYPES[low_precision] or torch.float32
        fp32 = _product_rate(place, torch.float32)
        return MeasuredSpeed(
            flops_low=fp32 if low == torch.float32 else _product_rate(place, low),
            flops_fp32=fp32,
            bandwidth=_bandwidth(place),
            launch=_launch_seconds(place, low) if place.type == "cuda" else 0.0,
        )


def _seconds(place: torch.device, work: Callable[[], object], *, repeats: int) -> float:
    """Of one call, in the quickest of some rounds: others may have been disturbed."""

    def wait() -> None:
        if place.type == "cuda":
            torch.cuda.synchronize(place)

    work()
    times = []
    for _ in range(ROUNDS):
        wait()
        begun = time.perf_counter()
        for _ in range(repeats):
            work()
        wait()
        times.append((time.perf_counter() - begun) / repeats)
    return min(times)


def _product_rate(place: torch.device, dtype: torch.dtype) -> float:
    rows, inputs, outputs = PRODUCT[place.type]
    left = torch.randn(rows, inputs, device=place, dtype=dtype)
    right = torch.randn(outputs, inputs, device=place, dtype=dtype)
    return 2 * rows * inputs * outputs / _seconds(place, lambda: left @ right.t(), repeats=4)


def _bandwidth(place: torch.device) -> float:
    source = torch.ones(COPIED[place.type], device=place)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _seconds(place, lambda: target.copy_(source), repeats=2)


def _launch_seconds(place: torch.device, low: torch.dtype) -> float:
    """By a model so small that its kernels take no time."""
    names = ("sst", "para", "sts")
    config = MultiTaskBertConfig(
        tasks=[task_to_dict(TASKS[name]) for name in names],
        adapter="pal",
        adapter_hidden=24,
        adapter_heads=3,
        vocab_size=100,
        hidden_size=48,
        num_hidden_layers=4,
        num_attention_heads=3,
        intermediate_size=96,
    )
    model = MultiTaskBert(config).to(place).train()
    batch = batch_of_size([8] * 6, names).to(place)
    loss = loss_of_segments({name: TASKS[name].objective for name in names})

    def step() -> None:
        with torch.enable_grad():
            with torch.autocast(place.type, low, enabled=low != torch.float32):
                value = loss(model(batch), batch)
            value.backward()
        model.forget_weight_copies()
        for parameter in model.parameters():
            parameter.grad = None

    count = launches(shape_of(model, config), tasks=len(names), micro_batches=1)
    return _seconds(place, step, repeats=3) / count
