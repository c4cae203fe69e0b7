"""A frozen encoder's features, cached against computed in every step: the same run twice, scores of both.

    python tests/bench/frozen.py --data_dir DATA [--epochs 10] [--threads 2] [--max_steps N]

Each run is a process of its own, `pal-dist train --features off` and `auto`, without dropout, so that both compute the
same. The cached one starts with no features: computing them is in its time, and said separately. Both find the tokens
ready. Times are of the whole process, imports and evaluations included.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from pal_dist.config.resolve import resolve
from pal_dist.core.console import table
from pal_dist.training.inputs import tokenize


def train(flags: dict[str, str], threads: int) -> dict[str, Any]:
    """The results of the run, and from its memory.json what became of the features."""
    words = [word for name, value in flags.items() for word in (f"--{name}", value)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    subprocess.run([sys.executable, "-m", "pal_dist", "train", *words], check=True, env=environment)
    folder = Path(flags["output_dir"])
    memory = folder / "memory.json"
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found | {"features": json.loads(memory.read_text()).get("features") if memory.is_file() else None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--tasks", default="sst,para,sts")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--max_steps", type=int)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pooling", default="mean")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        flags = {name: str(getattr(given, name)) for name in ("data_dir", "model", "tasks", "epochs", "pooling")}
        flags |= {"mode": "pretrain", "adapter": "none", "dropout": "0", "cache_dir": f"{folder}/cache"}
        flags |= {"max_steps": str(given.max_steps)} if given.max_steps else {}
        tokenize(resolve(flags)[0], cache_dir=Path(folder))
        found = {
            name: train({**flags, "features": name, "output_dir": f"{folder}/{name}"}, given.threads)
            for name in ("off", "auto")
        }
    rows = []
    for name, results in found.items():
        scores = [f"{values[metric]:.4f}" for values in results["dev"].values() for metric in list(values)[:1]]
        once = (results["features"] or {}).get("seconds", 0.0)
        times = results["total_seconds"], once, results["seconds"], results["evaluation_seconds"]
        rows.append([name, *(f"{time:.1f}" for time in times), f"{results['examples_per_second']:,.0f}", *scores])
    header = ["--features", "seconds in all", "features", "steps", "evaluation", "examples/s in steps"]
    print(table([*header, *found["auto"]["dev"]], rows))
    off, auto = found["off"], found["auto"]
    print(
        json.dumps(
            {
                "threads": given.threads,
                "epochs": given.epochs,
                "steps": auto["steps"],
                "ratio_in_all": round(off["total_seconds"] / auto["total_seconds"], 2),
                "ratio_of_steps": round(off["seconds"] / auto["seconds"], 1),
                "features": auto["features"],
                "dev": {name: results["dev"] for name, results in found.items()},
            }
        )
    )


if __name__ == "__main__":
    main()
