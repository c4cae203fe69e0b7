"""The speed of links from the seconds of a sum, and what one process can measure."""

from __future__ import annotations

import pytest
import torch

from pal_dist.distributed.link_benchmark import LinkBenchmark, benchmark_links
from pal_dist.distributed.process_group import ProcessGroup


def test_bandwidth_of_a_ring() -> None:
    """64 MiB on two ranks: each link carries them once; on four ranks, one and a half times."""
    measured = LinkBenchmark({1: 1.0, 64: 0.5}, work_seconds=1.0, clock=0.0)
    assert measured.bandwidth(2) == pytest.approx(64 * 2**20 / 0.5 / 1e9)
    assert measured.bandwidth(4) == pytest.approx(1.5 * 64 * 2**20 / 0.5 / 1e9)


def test_one_process_sums_nothing() -> None:
    measured = benchmark_links(ProcessGroup(), torch.device("cpu"))
    assert measured.all_reduce_seconds == {}
    assert measured.work_seconds > 0
