"""Law 7 on the device itself: a real step against its plan, and a card that is too full."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from pal_dist.commands.memory_check import check_memory
from pal_dist.commands.train import train


def test_a_real_step_is_what_was_planned(tiny_run, minilm: Path, cache_dir: Path) -> None:
    config = tiny_run(model=minilm, adapter_hidden=204, adapter_heads=12, batch_size=64, max_length=128)
    check = check_memory(config, {}, cache_dir=cache_dir)
    assert check.agrees, f"{check.measured:,} bytes measured, {check.planned.peak:,} planned"


def test_a_full_card_is_survived(tiny_run, minilm: Path, cache_dir: Path, tmp_path: Path) -> None:
    """Unplanned micro-batches that the card cannot hold: the step is run again in smaller ones, to the same end."""
    config = tiny_run(
        model=minilm, memory="off", precision="fp32", max_steps=2, batch_size=512, tokens_per_micro_batch=65_536
    )
    whole = train(
        replace(config, train=replace(config.train, output_dir=str(tmp_path / "whole"))), {}, cache_dir=cache_dir
    )
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.6 * whole["peak_memory_bytes"] / total)
    try:
        tight = train(
            replace(config, train=replace(config.train, output_dir=str(tmp_path / "tight"))), {}, cache_dir=cache_dir
        )
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert tight["peak_memory_bytes"] < whole["peak_memory_bytes"]
    for task, metrics in whole["dev"].items():
        for name, value in metrics.items():
            assert abs(tight["dev"][task][name] - value) < 0.02, (task, name)
