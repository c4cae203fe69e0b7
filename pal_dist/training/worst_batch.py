"""The proof of a plan: the largest micro-batch that a step can meet, forward and backward on every rank, before step 1.

No collective runs while memory is tight, so a rank that fails here fails alone, and the guard's vote tightens the
limits of all ranks. Parameters and optimizer are afterwards as they were.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pal_dist.data.batching import MicroBatch
from pal_dist.data.worst_step import rows_per_rank, tokens_of, worst_micro_batches
from pal_dist.training.run import Run


@dataclass(frozen=True)
class ProofResult:
    """What the worst micro-batches took."""

    micro_batches: tuple[tuple[int, int], ...]
    """(examples, tokens) of each, in the order in which they ran."""
    allocated: int
    """Highest bytes of tensors on this rank's device; on a CPU its resident memory."""
    reserved: int
    """Highest bytes taken from the device; on a CPU the same."""


def worst_step(run: Run) -> list[MicroBatch]:
    """The largest micro-batches that one rank can meet under the run's limits, as the planner reckons with them."""
    sampling = run.schedule.sampling
    return worst_micro_batches(
        run.schedule.lengths,
        budget=run.state.tokens_per_micro_batch,
        rows=rows_per_rank(sampling, run.engine.ranks),
        one_task=run.separates_tasks or sampling.step_tasks == "one",
    )


def run_worst_step(run: Run, *, held_bytes: int) -> ProofResult:
    """Run the worst micro-batches until no rank runs out of memory; the guard's limits are what is left.

    The first is run twice: from the second micro-batch of a step on, gradients are there already.

    Args:
        held_bytes: of what does not exist yet; its place is held meanwhile.

    Raises DoesNotFitError, on every rank, where the limits cannot be tightened enough.
    """
    engine, lengths, state = run.engine, run.schedule.lengths, run.state
    ran: list[tuple[int, int]] = []

    def attempt() -> list[tuple[int, int]]:
        ran.clear()
        held = torch.empty(held_bytes, dtype=torch.uint8, device=engine.device)
        engine.checkpoint_layers(state.checkpoint_layers)
        worst = worst_step(run)
        for micro in [*worst, worst[0]]:
            engine.backward(run.loss_sum(engine.to_device(run.batch(micro))))
            ran.append((micro.examples, tokens_of(micro, lengths)))
        del held
        return ran

    engine.model.train()
    engine.reset_peak_memory()
    run.guard.retry_on_oom(attempt, longest=max(int(each.max()) for each in lengths))
    result = ProofResult(tuple(ran), engine.peak_memory(), engine.peak_reserved_memory())
    engine.discard_step()
    return result
