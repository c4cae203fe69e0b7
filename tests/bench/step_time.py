"""A step's time as `train` says it before the first step, against what it takes: by what the device was measured to do.

python tests/bench/step_time.py --data_dir DATA [--rows 8,32] [--steps 12]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from pal_dist.config.resolve import resolve
from pal_dist.core.console import table
from pal_dist.training.setup import set_up
from pal_dist.training.trainer import Trainer

WARM_UP = 3


def said_and_taken(data_dir: str, adapter: str, rows: int, steps: int) -> tuple[float, float]:
    """Seconds of a step."""
    with tempfile.TemporaryDirectory() as folder:
        flags = {
            "data_dir": data_dir,
            "bad_rows": "skip",
            "adapter": adapter,
            "batch_size": str(rows),
            "output_dir": f"{folder}/run",
            "cache_dir": str(Path(tempfile.gettempdir()) / "step_time_cache"),
        }
        trainer = Trainer(set_up(resolve(flags)[0], {}, cache_dir=Path(folder)))
        assert trainer.run.plan is not None
        trainer.engine.model.train()
        seconds = []
        with trainer.loader:
            for served in trainer.loader.steps(0, steps + WARM_UP):
                begun = time.perf_counter()
                trainer.step(served)
                trainer.state.step += 1
                seconds.append(time.perf_counter() - begun)
        trainer.run.close()
        return trainer.run.plan.plan.seconds, statistics.mean(seconds[WARM_UP:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--rows", default="8,32")
    parser.add_argument("--steps", type=int, default=12)
    options = parser.parse_args()
    rows = []
    for adapter in ("none", "pal"):
        for count in map(int, options.rows.split(",")):
            said, taken = said_and_taken(options.data_dir, adapter, count, options.steps)
            rows.append([adapter, str(count), f"{said:.3f}", f"{taken:.3f}", f"{said / taken - 1:+.0%}"])
    print(table(["adapter", "examples of a task", "said s", "taken s", "off"], rows))


if __name__ == "__main__":
    main()
