"""What has been seen since the last log entry: sums that stay on the device until the entry is written."""

from __future__ import annotations

import math
import time
from typing import Any, NamedTuple

from torch import Tensor

from pal_dist.core.errors import UserError
from pal_dist.core.units import GIBIBYTE
from pal_dist.data.batch import Batch
from pal_dist.training.run import Run


class MicroBatchResult(NamedTuple):
    """A micro-batch that has been through the model."""

    batch: Batch
    losses_S: Tensor
    """The summed loss of each of its segments; detached, on the device."""


class LogWindow:
    """Adds up micro-batches and training time between two log entries."""

    def __init__(self, run: Run):
        self.run = run
        self.started = time.perf_counter()
        self.clear()

    def clear(self) -> None:
        self.loss_sums: dict[str, Any] = {}
        self.examples: dict[str, int] = {}
        self.tokens = self.useful_tokens = 0

    def add(self, result: MicroBatchResult) -> None:
        """The losses stay on the device, so nothing waits for it here."""
        for segment, loss_sum in zip(result.batch.segments, result.losses_S.unbind(), strict=True):
            if segment.examples:
                self.loss_sums[segment.task] = self.loss_sums.get(segment.task, 0.0) + loss_sum
                self.examples[segment.task] = self.examples.get(segment.task, 0) + segment.examples
        self.tokens += result.batch.tokens
        self.useful_tokens += result.batch.tokens - result.batch.filled_tokens

    def stop_clock(self) -> float:
        """What follows is no training: its time does not count. Returns seconds since the clock was started."""
        seconds = time.perf_counter() - self.started
        self.run.state.seconds += seconds
        return seconds

    def start_clock(self) -> None:
        self.started = time.perf_counter()

    def entry(self, gradient_norm: Tensor) -> dict[str, Any]:
        """The log entry of all ranks' micro-batches, and a new window. Every rank must call it.

        The one place where the loop waits for the device and meets the other ranks about numbers.

        Raises UserError where a loss is no longer finite.
        """
        run, state, engine = self.run, self.run.state, self.run.engine
        losses = {name: float(value) for name, value in self.loss_sums.items()}
        by_rank = engine.gather((losses, self.examples, self.tokens, self.useful_tokens))
        names = [task.name for task in run.tasks if any(task.name in examples for _, examples, _, _ in by_rank)]
        examples = {name: sum(theirs.get(name, 0) for _, theirs, _, _ in by_rank) for name in names}
        mean_loss = {name: sum(theirs.get(name, 0.0) for theirs, *_ in by_rank) / examples[name] for name in names}
        tokens, useful_tokens = (sum(theirs[column] for theirs in by_rank) for column in (2, 3))
        seconds = self.stop_clock()
        self.start_clock()
        state.examples += sum(examples.values())
        state.tokens += tokens
        state.useful_tokens += useful_tokens
        if not all(math.isfinite(value) for value in mean_loss.values()):
            raise UserError(
                f"step {state.step}: the loss is no longer finite ({mean_loss}); the last checkpoint is whole. Lower "
                f"--learning_rate, or use --precision bf16 or fp32"
            )
        self.clear()
        return {
            "loss": mean_loss,
            "learning_rate": engine.optimizer.param_groups[0]["lr"],
            "gradient_norm": float(gradient_norm),
            "examples_per_second": sum(examples.values()) / seconds,
            "tokens_per_second": tokens / seconds,
            "useful_token_share": useful_tokens / tokens,
            "memory_gib": engine.peak_memory() / GIBIBYTE,
            "seconds_left": state.seconds / state.step * (run.total_steps - state.step),
        }
