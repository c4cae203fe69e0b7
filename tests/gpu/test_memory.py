"""Law 7 on the device itself: a real step against its plan."""

from __future__ import annotations

from pathlib import Path

from pal_dist.commands.memory_check import check_memory


def test_a_real_step_is_what_was_planned(tiny_run, minilm: Path, cache_dir: Path) -> None:
    config = tiny_run(model=minilm, adapter_hidden=204, adapter_heads=12, batch_size=64, max_length=128)
    check = check_memory(config, {}, cache_dir=cache_dir)
    assert check.agrees, f"{check.measured:,} bytes measured, {check.planned.peak:,} planned"
