"""Verdicts of a comparison, and the commands that train its runs again."""

from __future__ import annotations

import json
import math
import shlex
import shutil
from pathlib import Path

import pytest

from pal_dist.config.resolve import resolve
from pal_dist.monitoring import run_files
from pal_dist.monitoring.compare import build_comparison
from pal_dist.monitoring.compare.runs import read_run
from pal_dist.monitoring.compare.significance import Difference
from pal_dist.monitoring.compare.tables import (
    EXCEEDS,
    SUGGESTIVE,
    WITHIN,
    best_beyond_noise,
    command,
    differences,
    verdict_of,
)
from tests.support.written_runs import PROPORTIONAL, ROUND_ROBIN, SAMPLINGS, set_scores


@pytest.mark.parametrize(
    ("p", "corrected", "verdict"), [(0.001, 0.04, EXCEEDS), (0.001, 0.06, SUGGESTIVE), (0.06, 0.06, WITHIN)]
)
def test_what_only_the_correction_takes_back(p: float, corrected: float, verdict: str) -> None:
    assert verdict_of(Difference(0.1, 0.0, 0.2, p), corrected) == verdict


def test_verdicts(runs: Path) -> None:
    shutil.copytree(runs / "round_robin_0", runs / "round_robin_2")
    shutil.copytree(runs / "proportional_0", runs / "proportional_2")
    for sampling, shift in (("round_robin", 0.0), ("proportional", 0.2)):
        for seed in range(3):
            folder = runs / f"{sampling}_{seed}"
            config = json.loads((folder / run_files.CONFIG).read_text())
            config["values"]["train"]["seed"] = seed
            (folder / run_files.CONFIG).write_text(json.dumps(config))
            set_scores(folder, sst=0.5 + shift + 0.001 * seed, para=0.5 + shift / 100 + 0.01 * seed)
    comparison = build_comparison([runs], baseline=ROUND_ROBIN)
    verdicts = {column: verdict for _, column, _, _, verdict in differences(comparison.groups, comparison.baseline)}
    assert verdicts == {"sst": EXCEEDS, "para": WITHIN, "mean": EXCEEDS}
    best = {column: best_beyond_noise(column, comparison.groups) for column in verdicts}
    assert {column: group and group.name for column, group in best.items()} == {
        "sst": PROPORTIONAL,
        "para": None,
        "mean": PROPORTIONAL,
    }
    assert "**0.7010 ± 0.0010**" in comparison.markdown()
    assert "**0.5120 ± 0.0100**" not in comparison.markdown()
    (group, _, one, corrected, _), *_ = differences(comparison.groups, comparison.baseline)
    assert group.name == PROPORTIONAL
    assert one.p is not None
    assert corrected == pytest.approx(min(1, 3 * one.p), rel=1)  # the smallest two of three
    set_scores(runs / "round_robin_0", sst=math.nan, para=0.5)
    again = build_comparison([runs], baseline=ROUND_ROBIN)
    assert "not a number: cannot be told" in again.markdown()
    assert again.html()


def test_a_single_task_has_no_mean_of_its_own(runs: Path) -> None:
    """Its one score beside means over three tasks would be compared with them."""
    for name in SAMPLINGS:
        set_scores(runs / f"{name}_0", sst=0.95)
    comparison = build_comparison([runs])
    alone = [run for run in comparison.runs if run.folder.name.endswith("_0")]
    assert [run.scores for run in alone] == [{"sst": 0.95}] * 2
    assert {run.mean for run in alone} == {0.95}
    assert all(group.best is not None and group.best.mean == 0.95 for group in comparison.groups)


def test_commands_train_the_same_run(runs: Path) -> None:
    run = read_run(runs / "proportional_1")
    arguments = shlex.split(command(run))
    assert arguments[:2] == ["pal-dist", "train"]
    flags = {name.removeprefix("--"): value for name, value in zip(arguments[2::2], arguments[3::2], strict=True)}
    again = json.loads(json.dumps(resolve(flags)[0].to_dict()))
    assert {name: value for section in again.values() for name, value in section.items()} == run.values
