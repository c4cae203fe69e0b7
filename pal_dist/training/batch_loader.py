"""Batches one step ahead: a thread gathers and packs the next step's rows while the device works on this one's."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import NamedTuple

from pal_dist.data.batch import Batch
from pal_dist.data.batching import MicroBatch, StepRows
from pal_dist.training.run import Run


class LoadedStep(NamedTuple):
    """What this rank runs in one step, on the host."""

    limits: tuple[int, int]
    """Tokens of a micro-batch and checkpointed layers, by which the step was cut."""
    micro_batches: list[tuple[MicroBatch, Batch]]


class BatchLoader:
    """`with BatchLoader(run) as loader:` the steps of a run, each one's batches ready when it begins."""

    def __init__(self, run: Run):
        self.run = run
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="batch loader")
        self.ahead: dict[int, Future[LoadedStep]] = {}
        """By the identity of what a step serves, which is alive as long as its entry."""

    def __enter__(self) -> BatchLoader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.thread.shutdown(wait=True, cancel_futures=True)
        self.ahead.clear()

    def steps(self, start: int, stop: int) -> Iterator[StepRows]:
        """(task, rows) of each step in [start, stop)."""
        schedule = self.run.schedule.steps(start, stop)
        following = next(schedule, None)
        while following is not None:
            step_rows, following = following, next(schedule, None)
            if following is not None:
                self.ahead[id(following)] = self.thread.submit(self._load, following)
            yield step_rows
            self.ahead.pop(id(step_rows), None)

    def micro_batches(self, step_rows: StepRows) -> list[tuple[MicroBatch, Batch]]:
        """This rank's micro-batches of the step, cut by the budget of now."""
        loaded = self.ahead[id(step_rows)].result() if id(step_rows) in self.ahead else None
        if loaded is None or loaded.limits != self._limits:  # the guard has cut it smaller
            loaded = self._load(step_rows)
        return loaded.micro_batches

    def _load(self, step_rows: StepRows) -> LoadedStep:
        limits, on_gpu = self._limits, self.run.engine.device.type == "cuda"
        micro_batches = []
        for micro in self.run.micro_batches(step_rows):
            batch = self.run.batch(micro, self.run.fixed_size(micro))
            micro_batches.append((micro, batch.pinned() if on_gpu else batch))  # only such memory is copied in passing
        return LoadedStep(limits, micro_batches)

    @property
    def _limits(self) -> tuple[int, int]:
        return self.run.state.tokens_per_micro_batch, self.run.state.checkpoint_layers
