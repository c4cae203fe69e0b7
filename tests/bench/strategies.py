"""What each strategy costs on two ranks: seconds a step against plain PyTorch DDP, start-up, checkpoints.

python tests/bench/strategies.py [--rounds 5] [--model minilm]

All strategies take turns, in processes of their own with one thread each; medians over the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from pal_dist.cli import default_cache
from pal_dist.config.resolve import resolve
from pal_dist.config.schema import RunConfig
from pal_dist.core.console import table
from pal_dist.optim.optimizers import parameter_groups
from pal_dist.training.checkpoint import checkpoints, save_checkpoint
from pal_dist.training.setup import set_up
from pal_dist.training.trainer import Trainer
from tests.support.ranks import run_ranks

NAMES = ("ddp", "zero1", "zero2", "zero2_offload", "zero3", "zero3_offload", "fsdp2")
STEPS, WARM = 8, 3


def ours(run: RunConfig) -> dict[str, float]:
    begun = time.perf_counter()
    trainer = Trainer(set_up(run, {}, cache_dir=default_cache()))
    found = {"start": time.perf_counter() - begun}
    trainer.engine.model.train()
    seconds = []
    for served in trainer.run.schedule.steps(0, STEPS):
        begun = time.perf_counter()
        trainer.step(served)
        trainer.state.step += 1
        seconds.append(time.perf_counter() - begun)
    found["step"] = statistics.median(seconds[WARM:])
    folder = trainer.run.folder / "checkpoints"
    begun = time.perf_counter()
    save_checkpoint(folder, trainer.engine, asdict(trainer.state), keep=1)
    found["save"] = time.perf_counter() - begun
    found["bytes"] = sum(path.stat().st_size for path in checkpoints(folder)[-1].iterdir())
    trainer.run.report.close()
    trainer.engine.close()
    return found


def plain(run: RunConfig) -> dict[str, float]:
    """The same model and micro-batches in DistributedDataParallel, reduced after every micro-batch."""
    trainer = Trainer(set_up(run, {}, cache_dir=default_cache()))
    model = trainer.engine.model.train()
    wrapped = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.01), lr=1e-5, fused=True)
    seconds = []
    for served in trainer.run.schedule.steps(0, STEPS):
        begun = time.perf_counter()
        count = sum(len(rows) for _, rows in served)
        for micro in trainer.run.micro_batches(served):
            batch = trainer.run.batch(micro)
            losses = [
                trainer.run.objectives[segment.task].loss(logits, batch.labels_R[segment.rows])
                for segment, logits in zip(batch.segments, wrapped(batch), strict=True)
            ]
            (torch.stack(losses).sum() / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - begun)
    trainer.run.report.close()
    trainer.engine.close()
    return {"step": statistics.median(seconds[WARM:])}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", default="minilm")
    given = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ("plain DDP", *NAMES)}
    base, _ = resolve({"model": given.model, "max_length": 64, "batch_size": 16, "evaluate_every": "none"})
    for _ in range(given.rounds):
        for name, entries in found.items():
            with tempfile.TemporaryDirectory() as folder:
                strategy = "ddp" if name == "plain DDP" else name
                run = replace(base, train=replace(base.train, output_dir=f"{folder}/run", strategy=strategy))
                answer: Any = run_ranks(plain if name == "plain DDP" else ours, run)[0]
                assert isinstance(answer, dict), answer
                entries.append(answer)
    middle = {
        name: {key: statistics.median(entry[key] for entry in entries) for key in entries[0]}
        for name, entries in found.items()
    }
    steps = [entry["step"] for entry in found["plain DDP"]]
    rows = []
    for name, figures in middle.items():
        ratios = [entry["step"] / reference for entry, reference in zip(found[name], steps, strict=True)]
        rows.append(
            [
                name,
                f"{1000 * figures['step']:,.0f}",
                f"{statistics.median(ratios):.2f}",
                f"{min(ratios):.2f} - {max(ratios):.2f}",
            ]
        )
        if "start" in figures:
            rows[-1] += [f"{figures['start']:.1f}", f"{figures['save']:.2f}", f"{figures['bytes'] / 1e6:,.0f}"]
        else:
            rows[-1] += ["", "", ""]
    print(table(["two ranks", "ms a step", "ratio", "range", "start s", "save s", "checkpoint MB"], rows))


if __name__ == "__main__":
    main()
