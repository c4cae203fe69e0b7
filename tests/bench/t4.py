"""Would the paper's own settings fit a T4? The table of README's "Your T4 crashed", by the planner, without a GPU.

python tests/bench/t4.py [--gpu t4] [--model bert-base-uncased]
"""

from __future__ import annotations

import argparse
from itertools import product

from pal_dist.cli import default_cache
from pal_dist.commands.plan import plan_from_flags
from pal_dist.config.resolve import resolve
from pal_dist.core.console import table
from pal_dist.core.units import GIBIBYTE


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--gpu", default="t4")
    parser.add_argument("--model", default="bert-base-uncased")
    arguments = parser.parse_args()
    rows = []
    for batch, length in product((8, 16, 32, 64, 128), (64, 128, 256, 512)):
        flags = {"model": arguments.model, "batch_size": batch, "max_length": length}
        paper = {"precision": "fp32", "optimizer": "adamw", "checkpoint_layers": 0}
        whole = {"tokens_per_micro_batch": batch * length}
        needed = []
        for options in ({"attention": "eager", "task_graphs": "3"}, {"attention": "eager"}):
            settings = resolve({**flags, **paper, **whole})
            report = plan_from_flags(*settings, {"gpu": arguments.gpu, **options}, cache_dir=default_cache())
            size = f"{report.planned.plan.needed / GIBIBYTE:.1f}"
            needed.append(size if report.fits else f"**{size}**")
        ours = plan_from_flags(*resolve(flags), {"gpu": arguments.gpu}, cache_dir=default_cache()).planned.plan
        options = f"{ours.options.precision}, {ours.tokens:,} tokens" + (
            f", every {ours.options.checkpoint_layers} layers" if ours.options.checkpoint_layers else ""
        )
        rows.append([str(batch), str(length), *needed, options, f"{ours.needed / GIBIBYTE:.1f}"])
    print(table(["batch", "length", "paper, 3 graphs", "paper, 1 graph", "our plan", "GiB"], rows))


if __name__ == "__main__":
    main()
