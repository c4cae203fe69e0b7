"""What a saved model is asked: scores of a split, prediction files, one text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from pal_dist.core.atomic_io import write_text
from pal_dist.core.console import say
from pal_dist.core.errors import UserError
from pal_dist.data.batch import batch_of_texts
from pal_dist.data.token_cache import Corpus
from pal_dist.tasks.registry import Task
from pal_dist.training.evaluate import course_lines, json_records, predict
from pal_dist.training.inputs import load_corpora
from pal_dist.training.saved_model import SavedModel


def _chosen(opened: SavedModel, names: list[str] | None) -> tuple[Task, ...]:
    unknown = [name for name in names or () if name not in opened.tasks]
    if unknown:
        raise UserError(f"this model has no task `{unknown[0]}`; it has {', '.join(opened.tasks)}")
    return tuple(opened.tasks[name] for name in names or opened.tasks)


def score_split(opened: SavedModel, names: list[str] | None, split: str) -> dict[str, dict[str, float]]:
    """{task: {metric: value}} of a whole split."""
    tasks = _chosen(opened, names)
    corpora = _corpora(opened, tasks, split, asked=names is not None, labelled=True)
    return {task.name: _predict(opened, task, corpora[task.name]).metrics() for task in tasks if task.name in corpora}


def write_predictions(opened: SavedModel, names: list[str] | None, split: str, folder: Path) -> list[Path]:
    """Two files a task, in the order of the input: the course's format and jsonl. Labels are not read."""
    tasks = _chosen(opened, names)
    corpora = _corpora(opened, tasks, split, asked=names is not None, labelled=False)
    written = []
    for task in tasks:
        if task.name not in corpora:
            continue
        found = _predict(opened, task, corpora[task.name])
        if opened.engine.is_main:
            folder.mkdir(parents=True, exist_ok=True)
            course, records = folder / f"{task.name}-{split}-output.csv", folder / f"{task.name}-{split}.jsonl"
            write_text(course, "\n".join(course_lines(found)) + "\n")
            write_text(records, "".join(json.dumps(record) + "\n" for record in json_records(found)))
            written += [course, records]
    return written


@torch.inference_mode()
def answer(opened: SavedModel, name: str, text: str, text_b: str | None) -> dict[str, Any]:
    """The prediction for one text or pair, with probabilities where the task has classes."""
    (task,) = _chosen(opened, [name])
    if (task.text_b is None) != (text_b is None):
        raise UserError(f"task `{name}` reads {'one text: drop' if task.text_b is None else 'a pair: give'} --text_b")
    for one in (text, text_b):
        if one is not None and not one.strip():
            raise UserError("--text is empty: nothing to predict from")
        if one is not None and len(one) > opened.config.data.max_characters:
            raise UserError(
                f"the text has {len(one):,} characters, more than --max_characters {opened.config.data.max_characters:,}; "
                f"only its first {opened.config.data.max_length} word pieces would be read"
            )
    opened.model.eval()
    texts: list[tuple[str, str | None]] = [(text.strip(), text_b.strip() if text_b else None)]
    batch = batch_of_texts(name, texts, opened.tokenizer, max_length=opened.config.data.max_length)
    logits = opened.engine.forward(opened.engine.to_device(batch)).cpu()
    value = task.objective.predict(logits.numpy())[0].item()
    found: dict[str, Any] = {"task": name, "prediction": task.objective.format_prediction(value)}
    if task.objective.outputs > 1:
        found["probabilities"] = [round(share, 4) for share in logits.softmax(-1)[0].tolist()]
    elif task.objective.class_count:
        found["probability"] = round(logits.sigmoid().item(), 4)
    return found


def _predict(opened: SavedModel, task: Task, corpus: Any) -> Any:
    padding_id = opened.model.config.pad_token_id or 0
    return predict(
        opened.engine,
        task,
        corpus,
        budget=opened.config.memory.token_budget,
        padding_id=padding_id,
    )


def _corpora(
    opened: SavedModel, tasks: tuple[Task, ...], split: str, *, asked: bool, labelled: bool
) -> dict[str, Corpus]:
    """The split of these tasks; those whose file is missing are told and left out, unless asked for by name."""
    here: list[Task] = []
    for task in tasks:
        file = task.file(split)
        if asked or (file and (opened.paths.data_dir / file).is_file()):
            here.append(task)
        elif opened.engine.is_main:
            say(f"warning: {task.name} is left out: " + (f"no file {file}" if file else f"it has no `{split}` file"))
    if not here:
        raise UserError(f"none of the tasks has a `{split}` file in {opened.paths.data_dir}")
    corpora = load_corpora(opened.config, tuple(here), split, opened.paths, opened.tokenizer, labelled=labelled)
    for corpus in corpora.values():
        for line in corpus.report.lines():
            say(f"warning: {line}")
    return corpora
