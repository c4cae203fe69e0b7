"""The table of tasks: a task is ONE declarative entry, here or in a yaml of the same fields."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from pal_dist.core.errors import UserError
from pal_dist.core.suggest import nearest
from pal_dist.tasks.objectives import Binary, Classes, Objective, Score, read_objective

SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class Task:
    """One task: where its rows are, what is read from them, what is predicted and how it is judged."""

    name: str
    """Name on the command line, in reports and in parameter names: letters, digits, `_` and `-`."""

    files: Mapping[str, str]
    """File of each split (train, dev, test), relative to the data folder. csv, tsv or jsonl, told by their content."""

    text_a: str | int
    """Column of the (first) text: its name in the header, or its position from 0 in a file without header."""

    label: str | int
    """Column of the label; absent from the test file."""

    objective: Objective
    """What is predicted: `Classes(n)`, `Binary()` or `Score(low, high)`."""

    metric: str
    """Headline metric: the best model is the one with the highest mean of these over the tasks."""

    text_b: str | int | None = None
    """Column of the second text of a pair; None: the task reads one text."""

    id: str | int | None = None
    """Column of the row's own name, written into prediction files; None: the row's number from 0."""

    quoting: bool = True
    """Whether a double quote opens a quoted field (csv rules). GLUE files take quotes as they come: False."""

    prediction_title: str = "Prediction"
    """Second word of the first line of a prediction file in the course format."""

    extra_files: Mapping[str, str] | None = None
    """Further named splits for `evaluate` and `predict`, such as MNLI's mismatched halves."""

    def file(self, split: str) -> str | None:
        """The split's file, relative to the data folder; None: the task has no such split."""
        return {**self.files, **(self.extra_files or {})}.get(split)


def _course(name: str, stem: str, *, pair: bool, label: str, objective: Objective, metric: str, title: str) -> Task:
    """A task in the layout of the CS224N default project: tab-separated `.csv` files with an `id` column."""
    return Task(
        name=name,
        files={"train": f"{stem}-train.csv", "dev": f"{stem}-dev.csv", "test": f"{stem}-test-student.csv"},
        text_a="sentence1" if pair else "sentence",
        text_b="sentence2" if pair else None,
        label=label,
        objective=objective,
        metric=metric,
        id="id",
        prediction_title=title,
    )


def _glue(
    name: str,
    folder: str,
    *,
    text_a: str | int,
    text_b: str | None = None,
    label: str | int,
    objective: Objective,
    metric: str,
    splits: Mapping[str, str] | None = None,
    extra_files: Mapping[str, str] | None = None,
) -> Task:
    """A task in the official GLUE layout: `glue/FOLDER/{train,dev,test}.tsv`, quotes taken literally."""
    file_names = splits or {split: f"{split}.tsv" for split in SPLITS}
    return Task(
        name=name,
        files={split: f"glue/{folder}/{file}" for split, file in file_names.items()},
        text_a=text_a,
        text_b=text_b,
        label=label,
        objective=objective,
        metric=metric,
        quoting=False,
        extra_files={split: f"glue/{folder}/{file}" for split, file in (extra_files or {}).items()},
    )


_ENTAILMENT = Binary(("not_entailment", "entailment"))

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        _course(
            "sst",
            "ids-sst",
            pair=False,
            label="sentiment",
            objective=Classes(5),
            metric="accuracy",
            title="Predicted_Sentiment",
        ),
        _course(
            "cfimdb",
            "ids-cfimdb",
            pair=False,
            label="sentiment",
            objective=Classes(2),
            metric="accuracy",
            title="Predicted_Sentiment",
        ),
        _course(
            "para",
            "quora",
            pair=True,
            label="is_duplicate",
            objective=Binary(),
            metric="accuracy",
            title="Predicted_Is_Paraphrase",
        ),
        _course(
            "sts",
            "sts",
            pair=True,
            label="similarity",
            objective=Score(0, 5),
            metric="pearson",
            title="Predicted_Similiary",  # sic: the course's own checker expects this spelling
        ),
        # CoLA has no header: source, label, mark, sentence. Its test file has one and other columns.
        _glue(
            "cola",
            "CoLA",
            text_a=3,
            label=1,
            objective=Binary(),
            metric="matthews",
            splits={"train": "train.tsv", "dev": "dev.tsv"},
        ),
        _glue("sst2", "SST-2", text_a="sentence", label="label", objective=Binary(), metric="accuracy"),
        _glue("mrpc", "MRPC", text_a="#1 String", text_b="#2 String", label="Quality", objective=Binary(), metric="f1"),
        _glue(
            "qqp", "QQP", text_a="question1", text_b="question2", label="is_duplicate", objective=Binary(), metric="f1"
        ),
        _glue(
            "stsb",
            "STS-B",
            text_a="sentence1",
            text_b="sentence2",
            label="score",
            objective=Score(0, 5),
            metric="spearman",
        ),
        _glue(
            "mnli",
            "MNLI",
            text_a="sentence1",
            text_b="sentence2",
            label="gold_label",
            objective=Classes(3, ("contradiction", "entailment", "neutral")),
            metric="accuracy",
            splits={"train": "train.tsv", "dev": "dev_matched.tsv", "test": "test_matched.tsv"},
            extra_files={"dev_mismatched": "dev_mismatched.tsv", "test_mismatched": "test_mismatched.tsv"},
        ),
        _glue(
            "qnli",
            "QNLI",
            text_a="question",
            text_b="sentence",
            label="label",
            objective=_ENTAILMENT,
            metric="accuracy",
        ),
        _glue(
            "rte",
            "RTE",
            text_a="sentence1",
            text_b="sentence2",
            label="label",
            objective=_ENTAILMENT,
            metric="accuracy",
        ),
        _glue(
            "wnli", "WNLI", text_a="sentence1", text_b="sentence2", label="label", objective=Binary(), metric="accuracy"
        ),
    )
}


def resolve_tasks(names: Iterable[str]) -> tuple[Task, ...]:
    """Names of the table, or paths of task yamls -> tasks in the order given.

    Raises UserError for an unknown name (with the nearest one), a name given twice, or a yaml that is no task.
    """
    tasks = tuple(_from_yaml(Path(name)) if name.endswith((".yaml", ".yml")) else _from_table(name) for name in names)
    task_names = [task.name for task in tasks]
    for name in task_names:
        if task_names.count(name) > 1:
            raise UserError(f"--tasks names `{name}` twice; every task may appear once")
    return tasks


def _from_table(name: str) -> Task:
    if name in TASKS:
        return TASKS[name]
    near = nearest(name, TASKS)
    hint = f"Did you mean `{near}`? " if near else ""
    raise UserError(
        f"unknown task `{name}`. {hint}Known: {', '.join(TASKS)}; or give the path of a task yaml (see the README)."
    )


def _from_yaml(path: Path) -> Task:
    try:
        entry = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path}: there is no such task file; --tasks takes names of the table and paths of yamls"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as yaml: {error}") from None
    return task_from_dict(entry, where=str(path), folder=path.parent)


def task_from_dict(entry: Any, *, where: str, folder: Path | None = None) -> Task:
    """A task from the plain form that yaml and saved models use. Paths found beside `folder` become absolute.

    Raises UserError naming `where` and every field that is missing or unknown.
    """
    task_fields = {field.name: field for field in fields(Task)}
    if not isinstance(entry, Mapping):
        raise UserError(
            f"{where}: expected the fields of a task ({', '.join(task_fields)}), found {type(entry).__name__}"
        )
    problems = [f"unknown field `{key}`" + _name_hint(str(key), task_fields) for key in entry if key not in task_fields]
    problems += [
        f"missing field `{name}`"
        for name, field in task_fields.items()
        if field.default is MISSING and name not in entry
    ]
    if problems:
        raise UserError(f"{where}: " + "; ".join(problems))
    values = dict(entry)
    objective = values["objective"] = read_objective(values["objective"], where=where)
    if not str(values["name"]).replace("_", "").replace("-", "").isalnum():
        raise UserError(f"{where}: `name` may have letters, digits, `_` and `-`, found {values['name']!r}")
    if values["metric"] not in objective.metric_names:
        raise UserError(
            f"{where}: `metric` must be one of {', '.join(objective.metric_names)}, found {values['metric']!r}"
        )
    if not isinstance(values["files"], Mapping) or not set(values["files"]) <= set(SPLITS):
        raise UserError(f"{where}: `files` maps {', '.join(SPLITS)} to file names, found {values['files']!r}")
    values["files"] = {split: _beside(str(file), folder) for split, file in values["files"].items()}
    return Task(**values)


def _beside(file: str, folder: Path | None) -> str:
    return str((folder / file).resolve()) if folder and (folder / file).is_file() else file


def _name_hint(name: str, names: Iterable[str]) -> str:
    near = nearest(name, names)
    return f" (did you mean `{near}`?)" if near else ""


def task_to_dict(task: Task) -> dict[str, Any]:
    """The inverse of `task_from_dict`, for a saved model's config."""
    entry = {field.name: getattr(task, field.name) for field in fields(Task)}
    entry["objective"] = task.objective.to_dict()
    entry["files"] = dict(task.files)
    return {name: value for name, value in entry.items() if value is not None}
