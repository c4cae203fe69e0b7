"""The study: the paper's claims, each with three seeds, on the real data, small enough for two cores.

    python tests/bench/study.py --data_dir DATA --output_dir STUDY [--workers 2] [--only samplings,adapters]
    pal-dist compare STUDY/base STUDY/samplings --output_dir STUDY/samplings/compare

DATA has the CS224N files (see README, Real data). Runs that are finished are left alone, so a study that was stopped
goes on. Each worker trains with one thread.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SEEDS = (0, 1, 2)

ROWS = {
    "ids-sst-train.csv": 410,
    "quora-train.csv": 766,
    "sts-train.csv": 264,
    "ids-sst-dev.csv": 700,
    "quora-dev.csv": 600,
    "sts-dev.csv": 600,
}
"""Rows that are used, spread evenly over each file (SST is not shuffled: its first rows are nearly all positive).
Training rows are in the proportions of the whole files."""

COMMON = {
    "model": "minilm",
    "tasks": "sst,para,sts",
    "max_length": 64,
    "epochs": 2,
    "batch_size": 8,
    "evaluate_every": "none",
    "log_every": 10,
    "memory": "off",
    "keep_checkpoints": 1,
}

KINDS = ("low_rank", "houlsby", "houlsby_parallel", "houlsby_plus_pal", "top_attention", "lhuc", "lora")

WHOLE = {"epochs": 1, "batch_size": 16, "adapter": "none"}
"""What differs from COMMON on the whole files: multi-task training against a run of each task alone."""

JOINT = {"tasks": "sst,para,sts", "batch_size": 32}

BASE: dict[str, object] = {}

QUESTIONS: dict[str, list[dict[str, object]]] = {
    "samplings": [BASE, *({"sampling": kind} for kind in ("random", "proportional", "sqrt", "annealed"))],
    "pals": [BASE, *({"adapter": kind} for kind in ("none", "progressive_pal"))],
    "batches": [
        BASE,
        *({"batch_size": size} for size in (16, 32, 64, 128)),
        {"batch_size": 64, "learning_rate": 6e-4},  # a rate that grows with the root of the batch
    ],
    "equal_steps": [BASE, {"batch_size": 32, "epochs": 8}],
    "conflicts": [BASE, *({"conflict": kind} for kind in ("pcgrad", "gradvac"))],
    "steps": [BASE, {"step_tasks": "one"}],
    "accumulation": [BASE, {"tokens_per_micro_batch": 256}],
    "adapters": [BASE, *({"adapter": kind} for kind in ("none", *KINDS))],
    "weightings": [BASE, *({"weighting": kind} for kind in ("equal", "scale", "uncertainty"))],
    "whole": [
        {**what, **adapter}
        for adapter in ({}, {"adapter": "pal"})
        for what in (JOINT, {"tasks": "sst"}, {"tasks": "para"}, {"tasks": "sts"})
    ],
}
"""Each question's groups: what differs from COMMON. BASE, which most have, is run once."""


def study_data(source: Path, target: Path) -> None:
    """The files cut to those rows; everything else as it is."""
    target.mkdir(parents=True, exist_ok=True)
    for path in source.glob("*.csv"):
        head, *lines = path.read_bytes().splitlines(keepends=True)
        rows = ROWS.get(path.name, len(lines))
        (target / path.name).write_bytes(head + b"".join(lines[i * len(lines) // rows] for i in range(rows)))


def run_folder(question: str, values: dict[str, object], seed: int) -> Path:
    """Folder of a run below the study's; the baseline has one for all questions."""
    name = "-".join(f"{name}_{value}" for name, value in values.items()).replace(",", "+")
    return Path(question, f"{name}-seed_{seed}") if values else Path("base", f"seed_{seed}")


def run(folder: Path, data: Path, values: dict[str, object]) -> int:
    """One run in a process of its own; what it says is beside its folder."""
    if (folder / "results.json").is_file():
        return 0
    folder.parent.mkdir(parents=True, exist_ok=True)
    settings = {**COMMON, **values, "data_dir": data, "output_dir": folder}
    flags = [f"--{name}={value}" for name, value in settings.items()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(folder.with_suffix(".log"), "w", encoding="utf-8") as log:
        command = [sys.executable, "-m", "pal_dist", "train", *flags]
        return subprocess.run(command, stderr=log, env=environment).returncode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", help="questions, separated by commas")
    options = parser.parse_args()
    data = options.output_dir / "data"
    study_data(options.data_dir, data)
    chosen = options.only.split(",") if options.only else list(QUESTIONS)
    planned_runs = {}
    for question in chosen:
        more, files = (WHOLE, options.data_dir) if question == "whole" else ({}, data)
        for values, seed in itertools.product(QUESTIONS[question], SEEDS):
            planned_runs[run_folder(question, values, seed)] = (files, {**more, **values, "seed": seed})
    with ThreadPoolExecutor(options.workers) as workers:
        futures = {name: workers.submit(run, options.output_dir / name, *what) for name, what in planned_runs.items()}
        for name, future in futures.items():
            print(name, "done" if future.result() == 0 else f"FAILED with exit code {future.result()}", flush=True)


if __name__ == "__main__":
    main()
