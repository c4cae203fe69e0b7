"""Kernels of one optimizer step, counted without a GPU: BERT-base, 32 + 32 + 32 real rows, bf16, update included.

Beside it what the host launches where the micro-batch is replayed as a CUDA graph, and how many kernels are left where
parts of the layers are compiled (`--compile on`), by what PyTorch's compiler generates for them on a CPU.

    python tests/bench/launches.py --data_dir DATA [--rows 32] [--capability 9.0]

Operators are counted on fake tensors on the way that a GPU of that capability takes (`pal_dist.memory.launches`). The
last line is JSON: {"none": kernels, "pal": kernels, "none compiled": kernels, ...}.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch._inductor import config as inductor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).parents[2]))

from pal_dist.cli import default_cache
from pal_dist.config.resolve import resolve
from pal_dist.core.console import table
from pal_dist.data.batch import Batch, TextRows, pack_batch
from pal_dist.data.batching import micro_batches
from pal_dist.memory.cuda_emulation import CudaEmulation
from pal_dist.memory.devices import find_device
from pal_dist.memory.launches import LaunchCounter, count_launches, step_launches
from pal_dist.memory.planner import loss_of_segments
from pal_dist.memory.step_time import GRAPH_LAUNCHES, UPDATE_LAUNCHES
from pal_dist.models.multi_task import MultiTaskBert, MultiTaskBertConfig
from pal_dist.models.precision import Emulation, KernelTarget, emulate
from pal_dist.models.regions import PLAIN, Regions, compiled
from pal_dist.optim.optimizers import build_optimizer
from pal_dist.tasks.registry import task_to_dict
from pal_dist.training.inputs import find_inputs, read_corpora
from pal_dist.training.setup import plan_steps


def batches_of(data_dir: str, rows: int) -> tuple[list[Batch], MultiTaskBertConfig]:
    """The micro-batches of the real data's first step, and BERT-base for its tasks."""
    run, _ = resolve({"data_dir": data_dir, "batch_size": str(rows), "bad_rows": "skip"})
    inputs = find_inputs(run, default_cache())
    corpora = list(read_corpora(run, inputs).train.values())
    schedule, _ = plan_steps(run, corpora)
    served = next(schedule.steps(0, 1))
    batches = []
    for micro in micro_batches(served, schedule.lengths, budget=1 << 20, rank=0, ranks=1):
        parts: list[tuple[str, TextRows]] = [
            (inputs.tasks[task].name, corpora[task].rows(own)) for task, own in micro.parts
        ]
        batches.append(pack_batch(parts))
    return batches, MultiTaskBertConfig(tasks=[task_to_dict(task) for task in inputs.tasks])


def counted(batches: list[Batch], config: MultiTaskBertConfig, capability: tuple[int, int]) -> LaunchCounter:
    run, _ = resolve({})
    loss = loss_of_segments({name: task.objective for name, task in config.task_table().items()})
    cuda = CudaEmulation(replace(find_device("h100"), capability=capability))
    gpu = Emulation(
        KernelTarget("cuda", capability),
        compute_dtype=lambda: cuda.low,
        autocast=cuda.autocast,
    )
    with FakeTensorMode(allow_non_fake_inputs=True), emulate(gpu), cuda:
        model = MultiTaskBert(config).train()
        update = build_optimizer(model, run.optimizer, 1e-5)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        update.step()
        update.zero_grad()
        fakes = [
            batch._replace(
                **{
                    name: torch.zeros(value.shape, dtype=value.dtype)
                    for name, value in batch._asdict().items()
                    if isinstance(value, torch.Tensor)
                }
            )
            for batch in batches
        ]

        def forward() -> torch.Tensor:
            total = torch.zeros(())
            for batch in fakes:
                with cuda.autocast(torch.bfloat16):
                    logits = model(batch)
                total = total + loss(logits, batch)
            return total

        return step_launches(model, forward, update)


def saved_by_compiling(layers: int) -> int:
    """Kernels fewer, by the parts of so many layers that are compiled; as the compiler makes them for a CPU."""
    shapes = [(48, 64)] * 2 + [(64, 64), (64,), (64,)]
    values, residual, weight, bias, norm = (torch.randn(shape, requires_grad=True) for shape in shapes)
    given = torch.randn(48, 64)

    def layer(regions: Regions) -> None:
        attended = regions.add_norm(values, residual, norm, bias, 1e-12)
        fed = regions.activated(torch.nn.functional.gelu, attended, weight, bias)
        regions.add_norm(fed, attended, norm, bias, 1e-12).backward(given)
        for leaf in (values, residual, weight, bias, norm):
            leaf.grad = None

    plain = count_launches(lambda: layer(PLAIN))
    # Products are the library's in either case, sums of a weight's gradients over its uses are the step's.
    own = plain.total - sum(plain.by_operator[name] for name in ("addmm", "mm", "add_"))
    with inductor.patch({"cpp.enable_kernel_profile": True, "force_disable_caches": True}):
        layer(compiled())
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            layer(compiled())
    fused = sum(event.count for event in profiler.key_averages() if "_fused_" in event.key)
    print(f"of the compiled parts of a layer, {own} kernels become {fused}", file=sys.stderr)
    return layers * (own - fused)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--capability", default="9.0")
    options = parser.parse_args()
    major, minor = map(int, options.capability.split("."))
    batches, config = batches_of(options.data_dir, options.rows)
    counters = {}
    for adapter in ("none", "pal"):
        with_adapter = MultiTaskBertConfig(**{**config.to_dict(), "adapter": adapter})
        counters[adapter] = counted(batches, with_adapter, (major, minor))
    groups = {adapter: counter.by_group() for adapter, counter in counters.items()}
    names = sorted(groups["pal"], key=lambda name: -groups["pal"][name])
    print(table(["kernels", "none", "pal"], [[n, *(str(groups[a].get(n, 0)) for a in groups)] for n in names]))
    totals = {adapter: counter.total for adapter, counter in counters.items()}
    saved = saved_by_compiling(config.num_hidden_layers)
    replayed = round(GRAPH_LAUNCHES + UPDATE_LAUNCHES)
    totals |= {f"{adapter} compiled": total - saved for adapter, total in totals.items()}
    print(json.dumps({**totals, "launched by the host for a replay and the update, about": replayed}))


if __name__ == "__main__":
    main()
