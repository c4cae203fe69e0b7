"""Where the time of a training step goes.

python tests/bench/profile_step.py --data_dir DATA [--adapter none|pal] [--steps 12]
"""

import argparse
import tempfile
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from pal_dist.config.resolve import resolve
from pal_dist.training.setup import set_up
from pal_dist.training.trainer import Trainer

KINDS = {
    "matrix products": ("mm", "addmm", "bmm", "baddbmm"),
    "dropout": ("native_dropout_backward", "random_", "ge", "mul"),
    "GELU": ("gelu", "gelu_backward"),
    "softmax, LayerNorm": ("_softmax", "_softmax_backward_data", "native_layer_norm", "native_layer_norm_backward"),
    "clearing and copying memory": ("fill_", "zero_", "copy_", "cat", "clone"),
    "optimizer": ("_fused_adamw_",),
    "gradient norm": ("_foreach_norm", "linalg_vector_norm", "_foreach_mul_", "stack"),
    "embedding": ("index_select", "embedding_dense_backward", "embedding"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--adapter", default="none")
    parser.add_argument("--steps", type=int, default=12)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        flags = {
            "data_dir": options.data_dir,
            "adapter": options.adapter,
            "cache_dir": folder,
            "output_dir": str(Path(folder) / "run"),
        }
        trainer = Trainer(set_up(resolve(flags)[0], {}, cache_dir=Path(folder)))
        trainer.engine.model.train()
        steps = trainer.run.schedule.steps(0, options.steps + 2)
        for _ in range(2):
            trainer.step(next(steps))
        with profile(activities=[ProfilerActivity.CPU]) as profiled, record_function("steps"):
            for served in steps:
                trainer.step(served)
        averages = {event.key: event for event in profiled.key_averages()}
        whole = averages["steps"].cpu_time_total + 0.0
        # Backward runs on a thread of its own, so its operators are not inside "steps": take each operator's own time.
        own = {
            key.removeprefix("aten::"): event.self_cpu_time_total for key, event in averages.items() if "aten::" in key
        }
        print(f"{options.steps} steps, {whole / options.steps / 1e3:.0f} ms each, {torch.get_num_threads()} threads")
        told = 0.0
        for kind, names in KINDS.items():
            share = sum(own.get(name, 0.0) for name in names) / whole
            told += share
            print(f"{kind:30s} {share:6.1%}")
        rest = sorted(
            ((value, key) for key, value in own.items() if not any(key in n for n in KINDS.values())), reverse=True
        )
        print(f"{'everything else':30s} {1 - told:6.1%}   largest: {', '.join(key for _, key in rest[:5])}")


if __name__ == "__main__":
    main()
