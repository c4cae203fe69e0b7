"""Law 7: what `plan` names, `train` accepts: for every strategy's yaml, every device, and runs that rule things out.

Each plan is taken at its word: its flags are added to those of the request, read as `train` reads them, and put to the
checks that `train` makes before its first step. Plans are those of the closed form alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import pytest

import pal_dist.commands.plan
import pal_dist.memory.planner
import pal_dist.memory.search
from pal_dist.commands.plan import PlanReport, PlanRequest, make_plan
from pal_dist.config.resolve import resolve
from pal_dist.config.schema import RunConfig
from pal_dist.core.errors import UserError
from pal_dist.distributed.compatibility import check_compatible
from pal_dist.distributed.precision import choose_precision
from pal_dist.distributed.strategy import Strategy, choose_strategy, strategy_names
from pal_dist.memory.devices import DEVICES
from pal_dist.memory.planner import as_flags
from pal_dist.memory.search import Plan, alternatives, nearest_that_does_not_fit
from pal_dist.models.multi_task import MultiTaskBert, MultiTaskBertConfig

TOO_LARGE = {
    "batch_size": 8192,
    "max_length": 512,
    "tokens_per_micro_batch": 8192 * 512,
    "precision": "fp32",
    "checkpoint_layers": 0,
}
"""More than any device of the table has."""

RUNS: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "too large": TOO_LARGE,
    "one task a step": {"step_tasks": "one"},
    "an adapter that wakes": {"adapter": "progressive_pal"},
    "one task a step, too large": {"step_tasks": "one", **TOO_LARGE},
    "an adapter that wakes, too large": {"adapter": "progressive_pal", **TOO_LARGE},
    "gradient surgery": {"conflict": "pcgrad"},
    "8-bit state": {"optimizer": "adamw_8bit"},
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16"},
    "heads alone": {"mode": "pretrain", "adapter": "none"},
    "more layers than there are": {"checkpoint_layers": 99},
}

DEPTH = 1
"""Layers of the model: one, so that hundreds of searches take seconds."""


@lru_cache
def strategy_of(name: str) -> Strategy:
    return choose_strategy(name, {})


models: dict[tuple[str, str], MultiTaskBert] = {}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each model is built once and has one layer; few budgets are looked at. The rules are those of any model."""
    build = pal_dist.memory.planner.meta_model
    encoder_config = pal_dist.commands.plan.encoder_config

    def built_once(run: RunConfig, config: MultiTaskBertConfig) -> MultiTaskBert:
        key = (run.model.adapter, run.train.mode)
        if key not in models:
            models[key] = build(run, config)
        return models[key]

    monkeypatch.setattr(pal_dist.memory.planner, "meta_model", built_once)
    monkeypatch.setattr(pal_dist.commands.plan, "meta_model", built_once)
    monkeypatch.setattr(
        pal_dist.commands.plan, "encoder_config", lambda name: {**encoder_config(name), "num_hidden_layers": DEPTH}
    )
    monkeypatch.setattr(pal_dist.memory.search, "BUDGET_STEP", 1 << 18)


def check_as_train_does(run: RunConfig, gpu: str) -> None:
    """Raises UserError."""
    check_compatible(run, strategy_of(run.train.strategy))
    choose_precision(run.train.precision, None if gpu == "cpu" else DEVICES[gpu].capability)


def named(report: PlanReport) -> Iterator[tuple[str, Plan]]:
    """Every plan that the report names in words or JSON, with the words that lead to it."""
    planned = report.planned
    yield "the plan" if planned.fits else "the least that was asked", planned.plan
    yield from alternatives(planned.plan)
    if report.would_fit is not None:
        yield "the nearest that would fit", report.would_fit.plan
        for change, plan in alternatives(report.would_fit.plan):
            yield f"the nearest that would fit, {change}", plan
    misfit = nearest_that_does_not_fit(planned.plans, planned.plan)
    if misfit is not None:
        yield "the nearest that does not fit", misfit


def assert_all_accepted(flags: dict[str, Any], gpu: str, gpus: int, **options: Any) -> int:
    """How many plans were named; 0: the request itself is refused, by `plan` in the words of `train`."""
    run, origins = resolve(flags)
    request = PlanRequest(run, origins, gpu=gpu, gpus=gpus)
    try:
        check_as_train_does(run, gpu)
    except UserError as refusal:
        with pytest.raises(UserError, match=re.escape(str(refusal))):
            make_plan(request, certify=False, **options)
        return 0
    plans = list(named(make_plan(request, certify=False, **options)))
    for words, plan in plans:
        added = re.findall(r"--(\w+) (\S+)", as_flags(plan))
        try:
            check_as_train_does(resolve({**flags, **dict(added)})[0], gpu)
        except UserError as refusal:
            pytest.fail(f"{flags} on {gpus} x {gpu}: {words} is {as_flags(plan)}, which train refuses: {refusal}")
    return len(plans)


@pytest.mark.parametrize("strategy", ["auto", *strategy_names()])
def test_for_every_strategy_and_device(strategy: str) -> None:
    for gpu in DEVICES:
        for gpus in (1, 4):
            for run in ({}, TOO_LARGE):
                assert assert_all_accepted({"strategy": strategy, **run}, gpu, gpus) > 1


@pytest.mark.parametrize("run", RUNS)
def test_for_runs_that_rule_things_out(run: str) -> None:
    for strategy in ("auto", "ddp", "zero2", "zero3_offload", "fsdp2"):
        for gpu in ("t4", "a100-40", "cpu"):
            for gpus in (1, 4):
                assert_all_accepted({"strategy": strategy, **RUNS[run]}, gpu, gpus)


def test_for_short_texts() -> None:
    """A budget must hold a sequence of --max_length, whatever the texts' own lengths."""
    lengths = [np.full(40, longest, dtype=np.int32) for longest in (17, 24, 21)]
    for batch_size in (2, 32):
        for max_length in (24, 128, 500):
            flags = {"batch_size": batch_size, "max_length": max_length}
            assert assert_all_accepted(flags, "t4", 1, lengths=lengths) > 1
