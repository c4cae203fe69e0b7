"""The proof of a plan: the worst batch of every task, forward and backward on every rank, before step 1.

No collective runs while memory is tight, so a rank that fails here fails alone, and the guard's vote makes all ranks'
cut finer. Parameters and optimizer are afterwards as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pal_dist.data.batching import MicroBatch
from pal_dist.distributed.engine import Engine
from pal_dist.training.oom_guard import OutOfMemoryGuard

Run = Callable[[MicroBatch], torch.Tensor]
"""A micro-batch -> its summed loss, graph included."""


@dataclass(frozen=True)
class ProofResult:
    """What the probe saw."""

    micro_batches: tuple[tuple[int, int, int], ...]
    """(task, examples, length) of each, in the order in which they ran."""
    allocated: int
    """Highest bytes of tensors on this rank's device; on a CPU its resident memory."""
    reserved: int
    """Highest bytes taken from the device; on a CPU the same."""


def worst_micro_batches(
    lengths: Sequence[NDArray[np.int32]], *, tokens: int, rows: int, padded: Callable[[int], int]
) -> list[MicroBatch]:
    """Each task's largest micro-batch: its longest examples, as many as the budget and a step hold; largest last, so
    that it meets the gradients of all others."""
    found = []
    for task, known in enumerate(lengths):
        longest = padded(int(known.max()))
        count = max(1, min(rows, len(known), tokens // longest))
        chosen = np.argsort(-known, kind="stable")[:count].astype(np.int64)
        found.append(MicroBatch(task, chosen))
    return sorted(found, key=lambda micro: len(micro.rows) * padded(int(lengths[micro.task].max())))


def probe(
    engine: Engine,
    guard: OutOfMemoryGuard,
    run: Run,
    lengths: Sequence[NDArray[np.int32]],
    *,
    rows: int,
    state_bytes: int,
) -> ProofResult:
    """Run the worst batches until no rank runs out of memory; the guard's cut is what is left.

    Args:
        state_bytes: of the optimizer's state that does not exist yet; its place is held meanwhile.

    Raises DoesNotFitError, on every rank, where no cut is fine enough.
    """
    seen: list[tuple[int, int, int]] = []

    def attempt() -> list[tuple[int, int, int]]:
        seen.clear()
        place_of_state = torch.empty(state_bytes, dtype=torch.uint8, device=engine.device)
        worst = worst_micro_batches(
            lengths, tokens=guard.limits.tokens_per_micro_batch, rows=rows, padded=engine.padded
        )
        for micro in worst:
            engine.backward(run(micro), 1)
            seen.append((micro.task, len(micro.rows), engine.padded(int(lengths[micro.task][micro.rows].max()))))
        del place_of_state
        return seen

    engine.reset_memory()
    longest = max(engine.padded(int(known.max())) for known in lengths)
    guard.retry_on_oom(attempt, longest=longest)
    evidence = ProofResult(tuple(seen), engine.memory(), engine.reserved_memory())
    engine.discard_step()
    return evidence
