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
from pal_dist.core.units import MEBIBYTE
from pal_dist.distributed.engine import Engine
from pal_dist.memory.closed_form import StepOptions
from pal_dist.memory.devices import Device, device_at_hand
from tests.support.memory import RECORDED, closed_form_error, measured_on_cpu, predicted_mebibytes
from tests.support.random_runs import batch_of, build, config_of, loss_of, optimizer_of, traced
from tests.support.ranks import in_parallel


def recorded() -> None:
    rows = []
    for name, (total, _) in RECORDED.items():
        predicted = predicted_mebibytes(name)
        rows.append([name, f"{total:,}", f"{predicted:,.0f}", f"{predicted / total - 1:+.2%}"])
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
        measured = measured_on_cpu(model, optimizer_of(model, optimizer), sizes, precision)
        case = f"{precision}, checkpoint_layers {layers}, {optimizer}"
        rows.append([case, f"{measured:,}", f"{planned.peak:,}", f"{planned.peak / measured - 1:+.5%}"])
    print(table(["this CPU", "measured bytes", "traced", "error"], rows), "\n")


def closed_form(seeds: range) -> None:
    errors = in_parallel(closed_form_error, seeds)
    print(
        f"closed form against the trace on {len(errors)} random runs: {statistics.mean(map(abs, errors)):.2%} off on "
        f"average, {min(errors):+.2%} to {max(errors):+.2%}\n"
    )


def on_this_gpu(device: Device) -> None:
    """Precision x checkpointing x optimizer x length x geometry, BERT-base; allocated and reserved by the allocator."""
    rows = []
    low = device.low_precision
    cases = [
        *product(("fp32", low), (0, 1), ("adamw", "adamw_8bit", "paged_adamw_8bit"), (128,), (204,)),
        *product(("fp32", low), (0,), ("adamw",), (64, 512), (192, 204)),
    ]
    for precision, layers, optimizer, length, width in cases:
        config = config_of(768, 12, 12, "pal", width)
        sizes = [(8192 // length, length, task) for task in ("sst", "para", "sts")]
        planned = traced(
            config, StepOptions(precision, "sdpa", layers, optimizer), [batch_of(*one) for one in sizes], device
        )
        allocated, reserved = _measured_on_gpu(build(config, layers), optimizer, sizes, precision)
        rows.append(
            [
                f"{precision}, checkpoint_layers {layers}, {optimizer}, {length} tokens, PAL {width}",
                f"{allocated / MEBIBYTE:,.0f}",
                f"{planned.peak / MEBIBYTE:,.0f}",
                f"{planned.peak / allocated - 1:+.2%}",
                f"{reserved / MEBIBYTE:,.0f}",
                f"{planned.reserved(expandable=True) / MEBIBYTE:,.0f}",
            ]
        )
    names = [torch.cuda.get_device_name(), "allocated MiB", "traced", "error", "reserved", "replayed"]
    print(table(names, rows))


def _measured_on_gpu(
    model: torch.nn.Module, optimizer: str, sizes: list[tuple[int, int, str]], precision: str
) -> tuple[int, int]:
    """Highest bytes allocated and reserved in the second of two steps."""
    model = model.train().cuda()
    update = optimizer_of(model, optimizer)
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    for _ in range(2):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        for size in sizes:
            batch = batch_of(*size)
            tensors = {name: part for name, part in batch._asdict().items() if isinstance(part, torch.Tensor)}
            batch = batch._replace(**{name: tensor.cuda() for name, tensor in tensors.items()})
            with torch.autocast("cuda", dtype, precision != "fp32"):
                loss = loss_of(model(batch), batch)
            (loss / len(sizes)).backward()
            del loss, batch
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        update.step()
        update.zero_grad()
    return torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", nargs=2, type=int, default=(100, 150))
    arguments = parser.parse_args()
    recorded()
    on_this_cpu()
    closed_form(range(*arguments.seeds))
    device = device_at_hand(Engine(precision="fp32").hardware())
    if device.is_cpu:
        print("no GPU here: predicted against torch.cuda.max_memory_allocated not measured")
    else:
        on_this_gpu(replace(device, taken=0))


if __name__ == "__main__":
    main()
