"""Which runs `compare` finds, and which of them are one group."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from pal_dist.core.errors import UserError
from pal_dist.monitoring import run_files
from pal_dist.monitoring.compare.runs import find_runs, group_runs
from pal_dist.monitoring.compare.tables import command
from tests.support.written_runs import PROPORTIONAL, ROUND_ROBIN, SEEDS, rewrite


def test_groups_differ_in_more_than_the_seed(runs: Path) -> None:
    groups, notes = group_runs(find_runs([runs]))
    assert {group.name: [run.values["seed"] for run in group.counted] for group in groups} == {
        PROPORTIONAL: list(SEEDS),
        ROUND_ROBIN: list(SEEDS),
    }
    assert notes == []
    assert len(find_runs([runs, runs / "round_robin_0"])) == 4
    assert find_runs([runs / "round_robin_1", runs])[0].folder.name == "round_robin_1"


def test_settings_that_do_not_matter_make_no_group(runs: Path) -> None:
    path = runs / "round_robin_1" / run_files.CONFIG
    written = json.loads(path.read_text())
    written["values"]["train"] |= {"output_dir": "elsewhere", "log_every": 7}
    written["values"]["data"] |= {"cache_dir": "elsewhere", "data_dir": "elsewhere"}
    path.write_text(json.dumps(written))
    assert len(group_runs(find_runs([runs]))[0]) == 2
    written["values"]["optimizer"]["learning_rate"] = 0.5
    path.write_text(json.dumps(written))
    names = [group.name for group in group_runs(find_runs([runs]))[0]]
    assert f"{ROUND_ROBIN} learning_rate=0.5" in names
    assert f"{ROUND_ROBIN} learning_rate=0.001" in names
    written["values"]["optimizer"]["learning_rate"] = None
    path.write_text(json.dumps(written))
    names = [group.name for group in group_runs(find_runs([runs]))[0]]
    assert f"{ROUND_ROBIN} learning_rate=default" in names


def test_infinity_is_one_value_however_it_was_written(runs: Path) -> None:
    """Version 0.1.0 wrote it as `Infinity`, which strict JSON does not have."""
    for name, text in (("round_robin_0", "Infinity"), ("round_robin_1", '"inf"')):
        path = runs / name / run_files.CONFIG
        written, count = re.subn(r'("max_gradient_norm": )[\d.]+', rf"\g<1>{text}", path.read_text())
        assert count == 1
        path.write_text(written)
    groups, _ = group_runs(find_runs([runs / "round_robin_0", runs / "round_robin_1"]))
    assert [len(group.counted) for group in groups] == [2]
    assert command(groups[0].runs[0]).count("--max_gradient_norm inf") == 1


def test_other_data_is_another_group(runs: Path) -> None:
    path = runs / "round_robin_1" / run_files.CONFIG
    rewrite(path, content=json.loads(path.read_text())["content"] | {"dev/sst": "other"})
    groups, notes = group_runs(find_runs([runs / "round_robin_0", runs / "round_robin_1"]))
    assert len({group.name for group in groups}) == 2
    assert any("the dev split of sst" in note for note in notes)


def test_a_repeated_seed_is_said_and_not_counted(runs: Path) -> None:
    shutil.copytree(runs / "round_robin_0", runs / "round_robin_2")
    groups, notes = group_runs(find_runs([runs]))
    assert {len(group.counted) for group in groups} == {2}
    assert "round_robin_2 repeats" in notes[0]


def test_damaged_runs_are_named(runs: Path) -> None:
    (runs / "round_robin_0" / run_files.RESULTS).write_text("{")
    with pytest.raises(UserError, match="not readable as JSON"):
        find_runs([runs])
    (runs / "round_robin_0" / run_files.CONFIG).unlink()
    with pytest.raises(UserError, match=r"config.json is missing"):
        find_runs([runs])
