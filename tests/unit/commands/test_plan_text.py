"""A plan in words and as JSON: memory is told in GiB, and in exact bytes to programs."""

from __future__ import annotations

import json
import re

import pytest

from pal_dist.commands.plan import PlanReport, PlanRequest, make_plan
from pal_dist.commands.plan_text import plan_json, plan_text
from pal_dist.config.resolve import resolve
from pal_dist.core.units import gib

TOO_LARGE = {
    "precision": "fp32",
    "optimizer": "adamw",
    "checkpoint_layers": 0,
    "max_length": 512,
    "batch_size": 2048,
    "tokens_per_micro_batch": 2048 * 512,
}


@pytest.fixture(scope="module")
def fits() -> PlanReport:
    return make_plan(PlanRequest(*resolve({}), gpu="t4", gpus=2, nodes=2), certify=False)


@pytest.fixture(scope="module")
def misfits() -> PlanReport:
    return make_plan(PlanRequest(*resolve(TOO_LARGE), gpu="t4"), certify=False)


@pytest.fixture(scope="module")
def tight() -> PlanReport:
    flags = {"model": "bert-large-uncased", "batch_size": 128, "max_length": 512}
    return make_plan(PlanRequest(*resolve(flags), gpu="t4"), certify=False)


def test_the_verdict_comes_with_flags(fits: PlanReport, misfits: PlanReport) -> None:
    assert re.search(r"^FITS: --precision fp16 --optimizer \w+ --checkpoint_layers 0 --tokens", plan_text(fits), re.M)
    text = plan_text(misfits)
    assert "DOES NOT FIT: --precision fp32 --optimizer adamw --checkpoint_layers 0 --tokens_per_micro_batch" in text
    assert misfits.would_fit is not None
    assert f"{gib(misfits.would_fit.plan.needed)}, " in text


def test_memory_is_told_in_gib(fits: PlanReport, tight: PlanReport, misfits: PlanReport) -> None:
    assert re.search(r"nearest that does not fit: --precision .*: [\d.]+ GiB too much", plan_text(tight))
    for report in (fits, tight, misfits):
        text = plan_text(report)
        device = report.planned.plan.machine.device
        assert f"{gib(device.memory)}, {gib(device.usable)} usable" in text
        assert "GiB at the peak" in text
        assert "saves GiB" in text
        assert re.findall(r"\b[KMGT]i?B\b(?!/s)", text.replace("GiB", "")) == []


def test_programs_get_exact_bytes(fits: PlanReport, misfits: PlanReport) -> None:
    for report in (fits, misfits):
        record, plan = json.loads(plan_json(report)), report.planned.plan
        assert record["fits"] == report.fits
        assert record["needed_bytes_with_margin"] == plan.needed
        assert record["predicted_peak_bytes"] == plan.estimate.peak
        assert sum(record["predicted_bytes"].values()) == plan.estimate.peak
        assert record["device"]["usable"] == plan.machine.device.usable
        assert all(isinstance(cure["saves_bytes"], int) for cure in record["cures"])
        assert (record["nearest_that_fits"] is None) == report.fits
        assert ("scaling" in record) == (plan.machine.ranks > 1)


def test_what_the_plan_stands_on(fits: PlanReport) -> None:
    assert "every example 128 tokens long (no data)" in plan_text(fits)
    cached = make_plan(PlanRequest(*resolve({"mode": "pretrain", "adapter": "none"}), gpu="t4"), certify=False)
    assert cached.features_cached
    assert "the plan is that of --features off" in plan_text(cached)
