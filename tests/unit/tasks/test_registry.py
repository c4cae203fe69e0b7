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
            ({"files": ["x"]}, "`files` must be a mapping"),
            ({"files": {"train": 5}}, "`files.train` must be text, found 5"),
            ({"files": {"train": "x" * 5000}}, "`train` must be the name of a file"),
            ({"files": {"train": "a\0b"}}, "`train` must be the name of a file"),
            ({"files": {"train": ""}}, "`train` must be the name of a file"),
            ({"extra_files": {"more": []}}, "`extra_files.more` must be text"),
            ({"name": -1}, "`name` must be text, found -1"),
            ({"name": True}, "`name` must be text, found True"),
            ({"name": "n" * 200}, "`name` may have up to 100"),
            ({"label": {}}, "`label` must be text or a whole number, found {}"),
            ({"label": True}, "`label` must be text or a whole number, found True"),
            ({"label": -1}, "`label` counts columns from 0, found -1"),
            ({"text_a": [1]}, "`text_a` must be text or a whole number"),
            ({"text_a": 10**400}, "`text_a` must be text or a whole number"),
            ({"text_b": 1.5}, "`text_b` must be text or a whole number or none, found 1.5"),
            ({"quoting": "perhaps"}, "`quoting` must be true or false, found 'perhaps'"),
            ({"quoting": 1}, "`quoting` must be true or false, found 1"),
            ({"metric": ["f1"]}, "`metric` must be text"),
            ({"prediction_title": 3}, "`prediction_title` must be text"),
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

    @pytest.mark.parametrize("files", ["{}", "{dev: x}"])
    def test_a_yaml_names_what_is_trained_on(self, files: str, tmp_path: Path) -> None:
        path = tmp_path / "t.yaml"
        path.write_text(f"name: t\nfiles: {files}\ntext_a: a\nlabel: b\nobjective: binary\n")
        with pytest.raises(UserError, match=r"t\.yaml: `files` lacks train"):
            resolve_tasks([str(path)])

    def test_words_that_were_booleans(self, tmp_path: Path) -> None:
        """yaml 1.1 made False and True of `no` and `yes`; as names of classes they are meant as they are written."""
        path = tmp_path / "t.yaml"
        head = "name: t\nfiles: {train: x}\ntext_a: a\nlabel: b\nobjective: {classes: [no, yes]}\n"
        for word, quoting in {"no": False, "yes": True, "off": False, "true": True}.items():
            path.write_text(f"{head}quoting: {word}\n")
            (task,) = resolve_tasks([str(path)])
            assert task.objective.parse("yes") == 1.0
            assert task.quoting is quoting
            assert task.metric == "accuracy", "the objective's own, where the yaml names none"

    @pytest.mark.parametrize("text", ["", "[", "- a", "5: 6", "name: t\nname: u", "name: [[[", "a: &a [*a]", "\t"])
    def test_what_is_no_task(self, text: str, tmp_path: Path) -> None:
        (tmp_path / "t.yaml").write_text(text)
        (tmp_path / "folder.yaml").mkdir()
        for name, says in {
            "t.yaml": "t.yaml: ",
            "folder.yaml": "found a folder",
            "x" * 3000 + ".yaml": "no such",
        }.items():
            with pytest.raises(UserError, match=says):
                resolve_tasks([str(tmp_path / name)])

    def test_names(self) -> None:
        with pytest.raises(UserError, match=r"unknown task `stss`\. Did you mean `sts`"):
            resolve_tasks(["stss"])
        with pytest.raises(UserError, match="names `sst` twice"):
            resolve_tasks(["sst", "sst"])
        with pytest.raises(UserError, match="no such task file"):
            resolve_tasks(["./nowhere.yaml"])
