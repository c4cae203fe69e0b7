"""Law 3 by hand: random deaths by SIGKILL over all strategies; each run goes on and ends like one that lived.

python tests/bench/deaths.py 20
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from ranks import run_ranks
from test_resume import FLAGS, fit, killed_and_resumed
from test_strategies import SHARED_OUT

from pal_dist.cli import default_cache
from pal_dist.config import RunConfig
from pal_dist.settings import resolve


def main(trials: int) -> None:
    base, _ = resolve({**FLAGS, "max_length": 32, "batch_size": 4, "adapter_hidden": 24, "tasks": "sst,sts"})

    def run_in(folder: Path, strategy: str) -> RunConfig:
        return replace(base, train=replace(base.train, output_dir=str(folder), strategy=strategy))

    strategies = ["single", "ddp", *SHARED_OUT]
    with tempfile.TemporaryDirectory() as place:
        clean = {}
        for trial in range(trials):
            strategy = strategies[trial % len(strategies)]
            name, ranks = ("auto", 1) if strategy == "single" else (strategy, 2)
            if strategy not in clean:
                clean[strategy] = run_ranks(fit, run_in(Path(place) / strategy, name), default_cache(), ranks=ranks)[0]
            run = run_in(Path(place) / f"{strategy}_{trial}", name)
            what, resumed = killed_and_resumed(run, default_cache(), seed=1000 + trial, ranks=ranks)
            for values, counts in resumed:
                assert counts == clean[strategy][1], (strategy, what)
                same = all(np.array_equal(values[key], value) for key, value in clean[strategy][0].items())
                assert same, (strategy, what)
            print(f"trial {trial + 1}: {strategy}, killed at {what}: bit-identical", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
