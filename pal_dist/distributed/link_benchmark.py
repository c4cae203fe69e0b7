"""What the ranks and the links between them can do, measured in a second before a run of days."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median

import torch
from torch import distributed

from pal_dist.core.units import MEBIBYTE
from pal_dist.distributed.process_group import ProcessGroup

SIZES = (1, 16, 64)
"""MiB summed over all ranks; the last is near the buffer through which gradients go (distributed/replicated.py)."""

ROUNDS = 3
SIDE, PRODUCTS = 512, 20
"""Of the fixed work by which the ranks' speeds are compared: that many products of square matrices."""


@dataclass(frozen=True)
class LinkBenchmark:
    """One rank's measurements."""

    all_reduce_seconds: dict[int, float]
    """Median seconds of one sum over all ranks, by its size in MiB."""
    work_seconds: float
    """Of the fixed work: a rank that needs longer than the others makes all of them wait."""
    clock: float
    """This rank's wall clock at the same moment, seconds since 1970."""

    def bandwidth(self, ranks: int) -> float:
        """1e9 bytes a second that each link carried in the largest sum; a ring sends 2 (n - 1) / n of it."""
        size = max(self.all_reduce_seconds)
        return 2 * (ranks - 1) / ranks * size * MEBIBYTE / self.all_reduce_seconds[size] / 1e9


def benchmark_links(group: ProcessGroup, device: torch.device) -> LinkBenchmark:
    """Every rank must call it. With one rank nothing is summed."""
    summed: dict[int, float] = {}
    if group.ranks > 1:
        for size in SIZES:
            values = torch.ones(size * MEBIBYTE // 4, device=device)
            distributed.all_reduce(values)  # connections are made on first use
            summed[size] = median(_timed_sum(values, device) for _ in range(ROUNDS))
    matrix = torch.ones(SIDE, SIDE, device=device) / SIDE
    matrix @ matrix
    group.vote(0)
    clock = time.time()
    _wait_for(device)
    started = time.perf_counter()
    for _ in range(PRODUCTS):
        matrix = matrix @ matrix
    _wait_for(device)
    return LinkBenchmark(summed, time.perf_counter() - started, clock)


def _timed_sum(values: torch.Tensor, device: torch.device) -> float:
    values.fill_(1.0)
    _wait_for(device)
    started = time.perf_counter()
    distributed.all_reduce(values)
    _wait_for(device)
    return time.perf_counter() - started


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
