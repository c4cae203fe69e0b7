"""The proof of a plan: the worst batch of every task, forward and backward on every rank, before step 1.

No collective runs while memory is tight, so a rank that fails here fails alone, and the guard's vote tightens the
limits of all ranks. Parameters and optimizer are afterwards as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pal_dist.data.batching import MicroBatch
from pal_dist.training.run import Run


@dataclass(frozen=True)
class ProofResult:
    """What the worst batches took."""

    micro_batches: tuple[tuple[int, int, int], ...]
    """(task, examples, length) of each, in the order in which they ran."""
    allocated: int
    """Highest bytes of tensors on this rank's device; on a CPU its resident memory."""
    reserved: int
    """Highest bytes taken from the device; on a CPU the same."""


def worst_micro_batches(
    lengths: Sequence[NDArray[np.int32]], *, tokens: int, rows: int, padded_length: Callable[[int], int]
) -> list[MicroBatch]:
    """Each task's largest micro-batch: its longest examples, as many as the budget and a step hold.

    The largest is the last, so that it meets the gradients of all others.

    Args:
        lengths: tokens of every training example, by task.
        tokens: budget of a micro-batch, padding included.
        rows: most examples of one task that one rank meets in a step.
        padded_length: the length to which a sequence of this length is padded.
    """
    worst = []
    for task, task_lengths in enumerate(lengths):
        longest = padded_length(int(task_lengths.max()))
        count = max(1, min(rows, len(task_lengths), tokens // longest))
        worst.append(MicroBatch(task, np.argsort(-task_lengths, kind="stable")[:count].astype(np.int64)))
    return sorted(worst, key=lambda micro: len(micro.rows) * padded_length(int(lengths[micro.task].max())))


def run_worst_batches(run: Run, *, rows: int, state_bytes: int) -> ProofResult:
    """Run the worst batches until no rank runs out of memory; the guard's limits are what is left.

    Args:
        rows: most examples of one task that one rank meets in a step.
        state_bytes: of the optimizer's state that does not exist yet; its place is held meanwhile.

    Raises DoesNotFitError, on every rank, where the limits cannot be tightened enough.
    """
    engine, lengths, state = run.engine, run.schedule.lengths, run.state
    ran: list[tuple[int, int, int]] = []

    def attempt() -> list[tuple[int, int, int]]:
        ran.clear()
        place_of_state = torch.empty(state_bytes, dtype=torch.uint8, device=engine.device)
        engine.checkpoint_layers(state.checkpoint_layers)
        worst = worst_micro_batches(
            lengths, tokens=state.tokens_per_micro_batch, rows=rows, padded_length=engine.padded_length
        )
        for micro in worst:
            engine.backward(run.forward(micro)[1], 1)
            ran.append((micro.task, len(micro.rows), engine.padded_length(int(lengths[micro.task][micro.rows].max()))))
        del place_of_state
        return ran

    engine.model.train()
    engine.reset_peak_memory()
    run.guard.retry_on_oom(attempt, longest=max(engine.padded_length(int(each.max())) for each in lengths))
    result = ProofResult(tuple(ran), engine.peak_memory(), engine.peak_reserved_memory())
    engine.discard_step()
    return result
