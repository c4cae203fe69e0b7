"""A run that is killed at random and started again."""

from __future__ import annotations

import random
import signal
from pathlib import Path
from typing import Any

from pal_dist.config.schema import RunConfig
from pal_dist.core.errors import RankLostError
from tests.support.ranks import Died, run_ranks
from tests.support.training import fit, fit_until_killed

PLACES = ("step", "evaluation", "save")


def killed_and_resumed(run: RunConfig, cache_dir: Path, *, seed: int, ranks: int) -> tuple[str, list[Any]]:
    chance = random.Random(seed)
    place, step = chance.choice(PLACES), chance.randrange(2, 9)
    died = run_ranks(fit_until_killed, run, cache_dir, place, step, ranks=ranks)
    # Who has not died yet when the other does meets a closed connection.
    assert any(isinstance(rank, Died) and rank.code == -signal.SIGKILL for rank in died), (place, step, died)
    assert all(isinstance(rank, (Died, RuntimeError, RankLostError)) for rank in died), (place, step, died)
    return f"{place} {step}", run_ranks(fit, run, cache_dir, ranks=ranks)
