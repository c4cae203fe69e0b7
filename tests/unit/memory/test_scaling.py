"""Estimates for many GPUs: what the model of a step's time says at its ends."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from pal_dist.memory.closed_form import StepOptions
from pal_dist.memory.devices import find_device
from pal_dist.memory.scaling import scaled, strong, weak
from pal_dist.memory.search import Machine, Plan, Workload
from pal_dist.memory.step_time import LINK_LATENCY, NETWORK_LATENCY, exchange_seconds
from tests.support.random_runs import config_of, shape

RANKS = 512

SHAPE = shape(config_of(768, 12, 12, width=204))


def plan(gpus: int = 8, nodes: int = 64, kind: str = "a100-40", strategy: str = "ddp", **changes: Any) -> Plan:
    machine = Machine(replace(find_device(kind), **changes), gpus, nodes)
    work = Workload(SHAPE, (32, 32, 32), 128, 30.0, examples=96 * machine.ranks, tasks_in_step=3, most_tokens=96 * 128)
    return Plan(work, machine, StepOptions("bf16", "sdpa", 0, "adamw"), strategy, tokens=4096)


class TestModel:
    def test_one_gpu_waits_for_nobody(self) -> None:
        for points in (weak(plan()), strong(plan())):
            assert points[0].gpus == 1
            assert points[0].all_reduce == 0
            assert points[0].efficiency(points[0]) == 1

    @pytest.mark.parametrize("strategy", ["ddp", "zero1", "zero2", "zero3", "fsdp2"])
    @pytest.mark.parametrize("kind", ["t4", "a100-40", "h100"])
    def test_no_gpu_does_more_than_one_alone(self, kind: str, strategy: str) -> None:
        points = weak(plan(kind=kind, strategy=strategy))
        assert [point.gpus for point in points] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
        assert [point.nodes for point in points] == [1, 1, 1, 1, 2, 4, 8, 16, 32, 64]
        for fewer, more in pairwise(points):
            assert more.examples_per_second > fewer.examples_per_second
            assert more.all_reduce > fewer.all_reduce
            if fewer.gpus > 1:  # one rank alone takes more care in cutting its batches
                assert more.efficiency(points[0]) <= fewer.efficiency(points[0]) <= 1

    def test_all_share_one_batch(self) -> None:
        points = strong(plan())
        assert {point.examples for point in points} == {96 * RANKS}
        for fewer, more in pairwise(points):
            assert more.seconds < fewer.seconds
        assert points[-1] == weak(plan())[-1] == scaled(plan()), "the run that was asked ends both"

    def test_parts_sum(self) -> None:
        point = scaled(plan())
        parts = (point.compute, point.all_reduce, point.input, point.checkpoint)
        assert min(parts) > 0
        assert point.seconds == pytest.approx(sum(parts))
        assert point.examples_per_second == pytest.approx(point.examples / sum(parts))

    def test_more_bandwidth_is_never_slower(self) -> None:
        for name in ("network", "link"):
            times = [scaled(plan(**{name: speed})).all_reduce for speed in (1, 10, 100, 1000)]
            assert times == sorted(times, reverse=True)
            assert times[0] > times[-1]

    @pytest.mark.parametrize(("gpus", "nodes"), [(2, 1), (8, 1), (1, 2), (8, 4)])
    def test_ring(self, gpus: int, nodes: int) -> None:
        """Patarasuk and Yuan 2009: each rank sends 2 (n - 1) / n of what is summed."""
        device = find_device("a100-40")
        ranks, size = gpus * nodes, 4 * SHAPE.trained_parameters
        pace = device.link if nodes == 1 else device.network
        hops = ranks * LINK_LATENCY if nodes == 1 else (ranks - nodes) * LINK_LATENCY + nodes * NETWORK_LATENCY
        rounds = 2 * -(-size // 2**27)
        found = plan(gpus, nodes).time.exchange
        assert found == pytest.approx(2 * (ranks - 1) / ranks * size / (pace * 1e9) + rounds * hops)
        assert exchange_seconds(0, 0, device, gpus=gpus, nodes=nodes) == 0
