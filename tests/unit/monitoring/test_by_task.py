"""Few tasks are all named; of many, the worst."""

from __future__ import annotations

import math

import pytest

from pal_dist.monitoring.by_task import losses_text, scores_text


def test_few_tasks_are_all_named() -> None:
    assert losses_text({"sst": 1.25, "para": 0.5}) == "sst 1.250 para 0.500"
    metrics = {"sst": {"f1": 0.25, "accuracy": 0.5}, "sts": {"pearson": 0.75}}
    assert scores_text(metrics, {"sst": "accuracy", "sts": "pearson"}) == "sst accuracy 0.5000  sts pearson 0.7500"


@pytest.mark.parametrize("tasks", [9, 30, 500])
def test_of_many_the_worst(tasks: int) -> None:
    values = {f"a_rather_long_name_of_a_task_{number}": number / tasks for number in range(tasks)}
    line = losses_text(values)
    assert len(line) < 200
    assert line.startswith(f"mean {(tasks - 1) / tasks / 2:.3f} of {tasks} tasks, highest ")
    assert f"task_{tasks - 1} " in line
    metrics = {name: {"accuracy": value} for name, value in values.items()}
    metrics["a_rather_long_name_of_a_task_5"]["accuracy"] = math.nan
    line = scores_text(metrics, dict.fromkeys(values, "accuracy"))
    assert len(line) < 250
    assert line.startswith(f"lowest of {tasks} tasks: a_rather_long_name_of_a_task_5 accuracy nan  ")
    assert "task_0 accuracy 0.0000" in line
