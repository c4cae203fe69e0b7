"""Runs on simulated cards: a random run, a card too small for it as it is, a plan, and the run as planned.

By hand, for many: `python -m tests.support.limits 200`.
"""

from __future__ import annotations

import random
import statistics
import sys
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from pal_dist.config.schema import RunConfig
from pal_dist.data.batching import micro_batches
from pal_dist.memory.closed_form import step_bytes
from pal_dist.memory.planner import search
from pal_dist.memory.search import Machine, SearchSpace, Workload
from tests.support.random_runs import NAMES, batch_of, random_run, shape, traced
from tests.support.ranks import in_parallel

RUN = RunConfig()


class Outcome(NamedTuple):
    share: float
    """Peak of the run over what the card has for tensors."""
    bottleneck: bool
    """Had there been room, the step would have been cut into fewer pieces, or nothing computed twice."""


def outcome(seed: int) -> Outcome:
    """Plan a random run for a random card and run its step there, with the card's limit enforced.

    Raises torch.OutOfMemoryError where the planned run needs more than the card has.
    """
    chance = random.Random(seed)
    run = random_run(1000 + seed, layers=(2, 3, 4))
    known = shape(run.config)
    lengths = [np.clip(np.random.default_rng(seed + task).lognormal(3.3, 0.6, 400), 5, run.length).astype(np.int32)
               for task in range(3)]  # fmt: skip
    batch_size, longest = chance.choice([16, 32, 64, 128]), -(-max(int(found.max()) for found in lengths) // 8) * 8
    work = Workload(known, batch_size, longest, float(np.mean(lengths)), 3, 3 * batch_size)
    options = replace(run.options, checkpoint_layers=0)
    all_at_once = step_bytes(known, options, batch_size, longest).peak
    single = step_bytes(known, options, 1, longest).peak
    usable = single * 1.12 + chance.uniform(0.05, 1.0) * (all_at_once - single)
    card = replace(run.device, memory=0, taken=0)
    card = replace(card, memory=int(usable) + card.context)
    choices = SearchSpace((options.precision,), (options.attention,), optimizer=(options.optimizer,))
    planned = search(work, Machine(card), choices, RUN, run.config, certify=False)
    assert planned is not None
    plan = planned.plan
    served = [(task, np.arange(batch_size) + chance.randrange(400 - batch_size)) for task in range(3)]
    for task, rows in served:  # the worst that a step can meet
        rows[:] = np.argsort(-lengths[task], kind="stable")[:batch_size]
    tokens, least = plan.tokens, plan.micro_batch_cost
    cut, wider = (micro_batches(served, lengths, budget=budget, rank=0, ranks=1, multiple=8, cost=least)
                  for budget in (tokens, 2 * tokens))  # fmt: skip
    batches = [
        batch_of(len(part.rows), -(-int(lengths[part.task][part.rows].max()) // 8) * 8, NAMES[part.task])
        for part in cut
    ]
    # The largest micro-batches decide; the others only take time to trace.
    batches = sorted(batches, key=lambda batch: batch.input_ids_BL.numel())[-3:]
    found = traced(run.config, plan.options, batches, card, limit=card.usable)
    return Outcome(found.peak / card.usable, len(wider) < len(cut) or plan.options.checkpoint_layers > 0)


if __name__ == "__main__":
    outcomes = in_parallel(outcome, range(int(sys.argv[1])))
    tight = [found.share for found in outcomes if found.bottleneck]
    print(f"{len(outcomes)} runs, none over its limit; memory the bottleneck in {len(tight)}: the planned runs use "
          f"{statistics.mean(tight):.1%} of the card on average, {min(tight):.1%} to {max(tight):.1%}")  # fmt: skip
