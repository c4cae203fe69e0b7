"""Predicted memory against measured: recorded GPUs, real tensors here, the closed form, and a GPU if there is one.

python tests/bench/memory.py [--seeds 100 150]
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from pal_dist.core.console import table
from pal_dist.distributed.engine import Engine
from pal_dist.memory.closed_form import StepOptions
from pal_dist.memory.devices import Device, device_at_hand
from pal_dist.memory.tracker import Tracker
from tests.ranks.test_closed_form import error
from tests.support.random_runs import batch_of, build, config_of, loss_of, optimizer_of, traced
from tests.support.ranks import in_parallel
from tests.unit.memory.test_recorded import RECORDED, predicted_mebibytes
from tests.unit.memory.test_trace import existing, real_step

MEBIBYTE = 1 << 20


def recorded() -> None:
    rows = []
    for name, (total, _) in RECORDED.items():
        found = predicted_mebibytes(name)
        rows.append([name, f"{total:,}", f"{found:,.0f}", f"{found / total - 1:+.2%}"])
    print(table(["BERT-large on a V100, 512 tokens", "recorded MiB", "predicted", "error"], rows), "\n")


def on_this_cpu() -> None:
    rows = []
    sizes = [(16, 64, "sst"), (12, 50, "para"), (8, 80, "sts")]
    config = config_of(192, 4, 4, "pal", 48, 4)
    for precision, layers, optimizer in product(("fp32", "bf16"), (0, 1, 2), ("adamw", "adamw_8bit")):
        planned = traced(
            config, StepOptions(precision, "sdpa", layers, optimizer), [batch_of(*one) for one in sizes], None
        )
        model = build(config, layers).train()
        update = optimizer_of(model, optimizer)
        real_step(model, update, sizes, precision)
        with Tracker(model, granularity=1) as tracker:
            tracker.mark(existing(model, update), "parameters")
            real_step(model, update, sizes, precision)
        rows.append([f"{precision}, checkpoint_layers {layers}, {optimizer}", f"{tracker.peak:,}", f"{planned.peak:,}",
                     f"{planned.peak / tracker.peak - 1:+.5%}"])  # fmt: skip
    print(table(["this CPU", "measured bytes", "traced", "error"], rows), "\n")


def closed_form(seeds: range) -> None:
    errors = in_parallel(error, seeds)
    print(f"closed form against the trace on {len(errors)} random runs: {statistics.mean(map(abs, errors)):.2%} off on "
          f"average, {min(errors):+.2%} to {max(errors):+.2%}\n")  # fmt: skip


def on_this_gpu(device: Device) -> None:
    """Precision x checkpointing x optimizer x length x geometry, BERT-base; allocated and reserved by the allocator."""
    rows = []
    low = device.low_precision
    cases = [*product(("fp32", low), (0, 1), ("adamw", "adamw_8bit", "paged_adamw_8bit"), (128,), (204,)),
             *product(("fp32", low), (0,), ("adamw",), (64, 512), (192, 204))]  # fmt: skip
    for precision, layers, optimizer, length, width in cases:
        config = config_of(768, 12, 12, "pal", width)
        sizes = [(8192 // length, length, task) for task in ("sst", "para", "sts")]
        planned = traced(
            config, StepOptions(precision, "sdpa", layers, optimizer), [batch_of(*one) for one in sizes], device
        )
        model = build(config, layers).train().cuda()
        update = optimizer_of(model, optimizer)
        for _ in range(2):
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            for size in sizes:
                batch = batch_of(*size)
                batch = batch._replace(**{name: value.cuda() for name, value in batch._asdict().items()
                                          if isinstance(value, torch.Tensor)})  # fmt: skip
                with torch.autocast("cuda", torch.float16 if low == "fp16" else torch.bfloat16, precision != "fp32"):
                    loss = loss_of(model(batch), batch)
                (loss / len(sizes)).backward()
                del loss, batch
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            update.step()
            update.zero_grad()
        seen, kept = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        rows.append([f"{precision}, checkpoint_layers {layers}, {optimizer}, {length} tokens, PAL {width}",
                     f"{seen / MEBIBYTE:,.0f}", f"{planned.peak / MEBIBYTE:,.0f}", f"{planned.peak / seen - 1:+.2%}",
                     f"{kept / MEBIBYTE:,.0f}", f"{planned.reserved(expandable=True) / MEBIBYTE:,.0f}"])  # fmt: skip
        del model, update
    names = [torch.cuda.get_device_name(), "allocated MiB", "traced", "error", "reserved", "replayed"]
    print(table(names, rows))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", nargs=2, type=int, default=(100, 150))
    given = parser.parse_args()
    recorded()
    on_this_cpu()
    closed_form(range(*given.seeds))
    device = device_at_hand(Engine(precision="fp32").hardware())
    if device.is_cpu:
        print("no GPU here: predicted against torch.cuda.max_memory_allocated not measured")
    else:
        on_this_gpu(replace(device, taken=0))


if __name__ == "__main__":
    main()
