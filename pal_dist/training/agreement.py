"""All ranks run the same run, and the same step of it (law 9): fingerprints that they compare before they begin."""

from __future__ import annotations

import json
import zlib

from pal_dist.config.resolve import names_where
from pal_dist.config.schema import RunConfig
from pal_dist.core.errors import UserError
from pal_dist.data.batching import StepRows
from pal_dist.distributed.engine import Engine
from pal_dist.training.run import Run


def check_same_run(config: RunConfig, hashes: dict[str, str], engine: Engine) -> None:
    """Raises UserError, on every rank, where ranks were given different settings or see different data.

    Args:
        hashes: what identifies each corpus.
    """
    own = {name: value for section in config.to_dict().values() for name, value in section.items()} | hashes
    for name in names_where(per_node=True):  # paths may differ from node to node
        own.pop(name)
    fingerprint = zlib.crc32(json.dumps(own, sort_keys=True, default=str).encode())
    if len(set(engine.gather(fingerprint))) == 1:
        return
    by_rank = engine.gather(own)
    lines = [
        f"  {name}: " + ", ".join(f"rank {rank} has {theirs.get(name)!r}" for rank, theirs in enumerate(by_rank))
        for name in by_rank[0]
        if any(theirs.get(name) != by_rank[0][name] for theirs in by_rank)
    ]
    raise UserError("the ranks were not given the same run:\n" + "\n".join(lines))


def step_fingerprint(run: Run, step_rows: StepRows) -> int:
    """Of the step that this rank is about to do: its number, its examples and their lengths, how it is cut."""
    state = run.state
    limits = f"{state.step} {state.tokens_per_micro_batch} {state.checkpoint_layers} {run.total_steps}"
    fingerprint = zlib.crc32(limits.encode())
    for task, rows in step_rows:
        lengths = zlib.crc32(run.schedule.lengths[task][rows].tobytes(), fingerprint + task)
        fingerprint = zlib.crc32(rows.tobytes(), lengths)
    return fingerprint


def describe_examples(run: Run, step_rows: StepRows) -> str:
    """`32 sst, 32 para`."""
    return ", ".join(f"{len(rows)} {run.tasks[task].name}" for task, rows in step_rows)


def describe_step(run: Run, step_rows: StepRows) -> str:
    """The step in words, for the message that names what each rank was about to do."""
    state = run.state
    tokens = sum(int(run.schedule.lengths[task][rows].sum()) for task, rows in step_rows)
    return (
        f"step {state.step + 1} of {run.total_steps}: {describe_examples(run, step_rows)}, {tokens:,} tokens, at most "
        f"{state.tokens_per_micro_batch:,} at once, checkpoint_layers {state.checkpoint_layers}"
    )
