"""What the scale model measures on a processor: how evenly 512 ranks are served, and how long that takes to work out.

    python tests/bench/scale.py --data_dir DATA

DATA as for `pal-dist train` (SST, Quora, STS). Lengths are drawn from its texts, as many as the tasks have in full.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import numpy as np

from pal_dist.cli import default_cache
from pal_dist.config.resolve import resolve
from pal_dist.data.batch import pack_batch
from pal_dist.data.batching import Schedule, assign_micro_batches, micro_batches
from pal_dist.data.sampling import Sampling
from pal_dist.data.tokenizer import load_tokenizer
from pal_dist.data.worst_step import tokens_of
from pal_dist.tasks.registry import resolve_tasks
from pal_dist.training.inputs import load_corpora, locate_inputs

SIZES = (8_544, 283_003, 6_040)
EACH = 32
"""Examples of a task for each rank in a step."""
STEPS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--budget", type=int, default=4096)
    options = parser.parse_args()
    run, _ = resolve({"data_dir": options.data_dir, "tasks": "sst,para,sts"})
    sources = locate_inputs(run, default_cache())
    of_tasks = load_corpora(run, resolve_tasks(run.data.tasks), "train", sources, load_tokenizer(sources.model_dir))
    corpora, draw = list(of_tasks.values()), np.random.default_rng(0)
    lengths = [draw.choice(corpus.lengths, size).astype(np.int32) for corpus, size in zip(corpora, SIZES, strict=True)]
    print("ranks  most tokens / mean  assigning, us per example of the step")
    for ranks in (1, 2, 8, 64, 512):
        schedule = Schedule(Sampling("round_robin", SIZES, EACH * ranks), lengths)
        most, seconds = [], []
        for served in schedule.steps(0, STEPS):
            micro_steps = assign_micro_batches(served, lengths, budget=options.budget, ranks=ranks)
            tokens = np.array([[tokens_of(micro, lengths) for micro in by_rank] for by_rank in micro_steps]).sum(axis=0)
            most.append(tokens.max() / tokens.mean())
            begun = time.perf_counter()
            micro_batches(served, lengths, budget=options.budget, rank=0, ranks=ranks)
            seconds.append((time.perf_counter() - begun) / sum(len(rows) for _, rows in served))
        print(f"{ranks:5}  {max(most):18.3f}  {1e6 * median(seconds):.2f}")
    times = []
    for _ in range(50):
        rows = draw.permutation(len(corpora[1]))[:64]
        begun = time.perf_counter()
        batch = pack_batch([("para", corpora[1].rows(rows))])
        times.append((time.perf_counter() - begun) / batch.tokens)
    print(f"packing: {1e9 * median(times):.0f} ns per token")


if __name__ == "__main__":
    main()
