"""Which scores are better, and what a run remembers of its best ones."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import pytest

from pal_dist.core.atomic_io import to_json
from pal_dist.training.run_state import RunState, is_better


@pytest.mark.parametrize(
    ("value", "best", "better"),
    [
        (0.0, None, True),
        (math.nan, None, True),
        (0.5, 0.4, True),
        (0.4, 0.4, False),
        (0.3, 0.4, False),
        (math.nan, 0.4, False),
        (0.1, math.nan, True),
        (math.nan, math.nan, False),
    ],
)
def test_is_better(value: float, best: float | None, better: bool) -> None:
    assert is_better(value, best) == better


def test_each_task_has_a_best_of_its_own() -> None:
    state = RunState(step=3)
    assert state.update_bests({"sst": 0.5, "sts": 0.2}) == ["sst", "sts"]
    state.step = 6
    assert state.update_bests({"sst": 0.4, "sts": 0.3}) == ["sts"]
    assert state.best_each == {"sst": {"step": 3, "value": 0.5}, "sts": {"step": 6, "value": 0.3}}
    assert state.mean_of_bests() == pytest.approx(0.4)


def test_no_score_has_no_mean() -> None:
    assert math.isnan(RunState().mean_of_bests())


def test_a_checkpoint_s_json_has_no_nan_and_is_read_back_whole() -> None:
    state = RunState(step=6, best_step=6, best_mean=math.nan, best_metrics={"sts": {"pearson": math.nan}})
    state.best_each = {"sts": {"step": 6, "value": math.nan}, "sst": {"step": 3, "value": 0.5}}
    text = to_json(asdict(state))
    assert "NaN" not in text
    restored = RunState.from_json(json.loads(text))
    assert repr(restored) == repr(state)
    assert RunState.from_json(json.loads(to_json(asdict(RunState())))) == RunState()


def test_a_score_that_was_no_number_is_bettered() -> None:
    state = RunState()
    assert state.update_bests({"sts": math.nan, "sst": 0.5}) == ["sts", "sst"]
    state.step = 3
    assert state.update_bests({"sts": -0.2, "sst": 0.5}) == ["sts"]
    assert state.update_bests({"sts": math.nan, "sst": math.nan}) == []
    assert state.best_each == {"sts": {"step": 3, "value": -0.2}, "sst": {"step": 0, "value": 0.5}}
    assert state.mean_of_bests() == pytest.approx(0.15)
