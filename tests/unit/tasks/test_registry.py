"""The table of tasks, and tasks of one's own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pal_dist.core.errors import UserError
from pal_dist.data.readers import Example, read_rows
from pal_dist.tasks.registry import TASKS, resolve_tasks, task_from_dict, task_to_dict


class TestTasks:
    def test_table_survives_being_written(self) -> None:
        for task in TASKS.values():
            assert task_from_dict(json.loads(json.dumps(task_to_dict(task))), where="here") == replace(
                task, extra_files=task.extra_files
            )

    def test_a_users_own_task(self, tmp_path: Path) -> None:
        (tmp_path / "toxic.yaml").write_text(
            "name: toxic\nfiles: {train: train.jsonl, dev: dev.jsonl}\ntext_a: comment\nlabel: verdict\n"
            "objective: {classes: [fine, rude, vile]}\nmetric: f1_macro\n"
        )
        (tmp_path / "train.jsonl").write_text('{"comment": "hi", "verdict": "rude"}\n')
        (task,) = resolve_tasks([str(tmp_path / "toxic.yaml")])
        assert task.files == {"train": str(tmp_path / "train.jsonl"), "dev": "dev.jsonl"}
        assert list(read_rows(tmp_path / "train.jsonl", task, labelled=True, max_characters=1000)) == [
            Example(1, "", "hi", None, 1.0)
        ]

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            ({"metrik": "x"}, "unknown field `metrik`.*did you mean `metric`"),
            ({"label": None}, "missing field `label`"),
            ({"metric": "pearson"}, "`metric` must be one of accuracy"),
            ({"objective": "seven"}, "`objective` must be"),
            ({"name": "a.b"}, "`name` may have"),
            ({"files": {"training": "x"}}, "`files` maps train, dev, test"),
        ],
    )
    def test_wrong_yaml(self, change: dict[str, object], says: str, tmp_path: Path) -> None:
        entry = {
            "name": "t",
            "files": {"train": "x"},
            "text_a": "a",
            "label": "b",
            "objective": "binary",
            "metric": "accuracy",
        } | change
        with pytest.raises(UserError, match=says):
            task_from_dict({key: value for key, value in entry.items() if value is not None}, where="t.yaml")

    def test_names(self) -> None:
        with pytest.raises(UserError, match=r"unknown task `stss`\. Did you mean `sts`"):
            resolve_tasks(["stss"])
        with pytest.raises(UserError, match="names `sst` twice"):
            resolve_tasks(["sst", "sst"])
        with pytest.raises(UserError, match="no such task file"):
            resolve_tasks(["./nowhere.yaml"])
