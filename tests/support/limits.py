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

from pal_dist.data.batching import micro_batches
from pal_dist.data.worst_step import most_tokens, worst_micro_batches
from pal_dist.memory.closed_form import PackedSize, step_bytes
from pal_dist.memory.devices import Device
from pal_dist.memory.planner import batch_of_size, search
from pal_dist.memory.search import Machine, SearchSpace, Workload
from tests.support.random_runs import NAMES, RandomRun, random_run, shape, traced
from tests.support.ranks import in_parallel

EXAMPLES = 400
"""Of each task."""


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
    lengths = [
        np.clip(np.random.default_rng(seed + task).lognormal(3.3, 0.6, EXAMPLES), 5, run.size.length).astype(np.int32)
        for task in range(3)
    ]
    batch_size = chance.choice([16, 32, 64, 128])
    longest = max(int(of_task.max()) for of_task in lengths)
    rows = (batch_size,) * 3
    most = sum(most_tokens(lengths, rows))
    work = Workload(shape(run.config), rows, longest, float(np.mean(lengths)), 3 * batch_size, 3, most)
    card = _too_small(run, work, chance)
    choices = SearchSpace((run.options.precision,), (run.options.attention,), optimizer=(run.options.optimizer,))
    planned = search(work, Machine(card), choices, run.config, certify=False)
    assert planned is not None
    plan = planned.plan
    served = [(task, np.arange(batch_size) + chance.randrange(EXAMPLES - batch_size)) for task in range(3)]
    for task, rows in served:  # the worst that a step can meet
        rows[:] = np.argsort(-lengths[task], kind="stable")[:batch_size]
    as_planned, with_more_room = (
        micro_batches(served, lengths, budget=budget, rank=0, ranks=1) for budget in (plan.tokens, 2 * plan.tokens)
    )
    # The largest that a step can meet, twice where it meets gradients.
    worst = worst_micro_batches(lengths, budget=plan.tokens, rows=(batch_size,) * 3, one_task=False)
    batches = [
        batch_of_size([int(length) for task, own in micro.parts for length in lengths[task][own]], NAMES)
        for micro in worst
    ]
    # The graphs' pool is there all the time.
    step = traced(run.config, plan.options, batches, card, limit=card.usable - plan.graph_bytes)
    is_bottleneck = len(with_more_room) < len(as_planned) or plan.options.checkpoint_layers > 0
    return Outcome((step.peak + plan.graph_bytes) / card.usable, is_bottleneck)


def _too_small(run: RandomRun, work: Workload, chance: random.Random) -> Device:
    """The run's card with less memory than all examples at once take, and more than a single one takes."""
    options = replace(run.options, checkpoint_layers=0)
    all_at_once, single = (
        step_bytes(work.shape, options, PackedSize(rows * work.longest, rows, work.longest, 1)).peak
        for rows in (work.most_tokens // work.longest, 1)
    )
    usable = single * 1.12 + chance.uniform(0.05, 1.0) * (all_at_once - single)
    card = replace(run.device, memory=0, taken=0)
    return replace(card, memory=int(usable) + card.context)


if __name__ == "__main__":
    outcomes = in_parallel(outcome, range(int(sys.argv[1])))
    shares = [each.share for each in outcomes if each.bottleneck]
    print(
        f"{len(outcomes)} runs, none over its limit; memory the bottleneck in {len(shares)}: the planned runs use "
        f"{statistics.mean(shares):.1%} of the card on average, {min(shares):.1%} to {max(shares):.1%}"
    )
