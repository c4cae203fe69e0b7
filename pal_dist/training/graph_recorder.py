"""How a micro-batch's pass is recorded: as a CUDA graph, or, without recording anything, as a call of the same work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from pal_dist.data.batch import Batch

Work = Callable[[Batch], None]
"""Reads a batch in fixed buffers and writes into fixed buffers."""


class Recorder(Protocol):
    def record(self, work: Work, batch: Batch) -> Work:
        """What does the same as `work` whenever it is called; nothing is computed now.

        Args:
            batch: in the buffers that every later one is copied to.
        """
        ...


class CudaGraphRecorder:
    """CUDA graphs that share one pool of memory, since only one of them runs at a time."""

    def __init__(self) -> None:
        self.pool = torch.cuda.graph_pool_handle()

    def record(self, work: Work, batch: Batch) -> Work:
        graph = torch.cuda.CUDAGraph()
        # Other threads go on meanwhile: one pins the next step's batches.
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            work(batch)
        return lambda _: graph.replay()


class PlainRecorder:
    """Records nothing: for devices without graphs, and to tell a graph's fault from that of fixed sizes."""

    def record(self, work: Work, batch: Batch) -> Work:
        return work
