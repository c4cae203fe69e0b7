"""Memory of PCGrad on BERT-base: gradients kept apart against PCGrad as it is often written. No GPU is needed.

    python tests/bench/conflict.py [--rows 32] [--length 128] [--precision fp16]

One step of three tasks with PALs on fake tensors, a T4's kernels emulated (`pal_dist.memory.trace`). The naive way is
that of tests/support/naive_pcgrad.py: all graphs alive, a flat gradient of everything for each task, a projected copy
of each.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from pal_dist.core.units import GIBIBYTE
from pal_dist.memory import find_device
from pal_dist.memory.closed_form import StepOptions
from pal_dist.memory.planner import separate_task_gradients
from tests.support.naive_pcgrad import naive_pcgrad, trace_of
from tests.support.random_runs import batch_of, config_of, loss_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--precision", default="fp16")
    arguments = parser.parse_args()
    config = config_of(768, 12, 12, "pal", 204, 12)
    options, device = StepOptions(arguments.precision), find_device("t4")
    batches = [batch_of(arguments.rows, arguments.length, task) for task in ("sst", "para", "sts")]
    ways = {
        "gradients summed": trace_of(config, options, device, batches, loss_of),
        "kept apart (pal-dist)": trace_of(
            config, options, device, batches, loss_of, after=separate_task_gradients([0, 1, 2])
        ),
        "as often written": trace_of(config, options, device, [batches], naive_pcgrad),
    }
    least = next(iter(ways.values())).peak
    for name, step in ways.items():
        print(f"{name:24} {step.peak / GIBIBYTE:6.2f} GiB   x {step.peak / least:.2f}")


if __name__ == "__main__":
    main()
