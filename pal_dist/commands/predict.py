"""The verb `predict`: prediction files of a split, or the prediction for one text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pal_dist.commands.saved_model import load_split, model_from_flags, predict_split, task_of
from pal_dist.core.atomic_io import to_json, write_text
from pal_dist.core.errors import UserError
from pal_dist.data.batch import batch_of_texts
from pal_dist.monitoring import run_files
from pal_dist.training.evaluate import course_lines, json_records
from pal_dist.training.saved_model import SavedModel


def predict(name: str | None, flags: Mapping[str, str], *, cache_dir: Path) -> list[str]:
    """What to print: the paths of the files written, or the prediction for one text as a line of JSON.

    Args:
        name: folder of a run or of a saved model.
        flags: PREDICT_OPTIONS of options.py, and settings that overrule those of the model's run, as typed.
        cache_dir: where tokenised corpora are kept unless the settings say otherwise.

    Raises UserError. Every rank must call it; all but the first have nothing to print.
    """
    if "text" in flags and "task" not in flags:
        raise UserError('predict --text "..." needs --task NAME, the task to ask')
    if "text_b" in flags and "text" not in flags:
        raise UserError("predict --text_b is the second text of a pair: give the first as --text")
    saved_model = model_from_flags(name, flags, cache_dir=cache_dir)
    if "text" in flags:
        lines = [to_json(predict_text(saved_model, flags["task"], flags["text"], flags.get("text_b")))]
    else:
        folder = Path(flags.get("predictions_dir") or saved_model.folder / run_files.PREDICTIONS)
        tasks, split = flags.get("task", flags.get("tasks")), flags.get("split", "test")
        names = None if tasks is None else tasks.split(",")
        lines = [str(path) for path in write_predictions(saved_model, names, split, folder)]
    saved_model.engine.close()
    return lines if saved_model.engine.is_main else []


def write_predictions(saved_model: SavedModel, names: Sequence[str] | None, split: str, folder: Path) -> list[Path]:
    """Two files for each of the named tasks, or for all that have the split: the course's format, and jsonl.

    Lines are in the order of the input, whose labels are not read. Returns the paths of what this rank has written: all
    of them or, of every rank but the first, none. Raises UserError.
    """
    paths: list[Path] = []
    for name, corpus in load_split(saved_model, names, split, labelled=False).items():
        predictions = predict_split(saved_model, saved_model.tasks[name], corpus)
        if saved_model.engine.is_main:
            folder.mkdir(parents=True, exist_ok=True)
            course, records = folder / f"{name}-{split}-output.csv", folder / f"{name}-{split}.jsonl"
            write_text(course, "\n".join(course_lines(predictions)) + "\n")
            write_text(records, "".join(to_json(record) + "\n" for record in json_records(predictions)))
            paths += [course, records]
    return paths


@torch.inference_mode()
def predict_text(saved_model: SavedModel, name: str, text: str, text_b: str | None) -> dict[str, Any]:
    """The prediction of task `name` for one text or pair, with probabilities where the task has classes.

    Raises UserError for a task that the model lacks, one text where it reads pairs (or the other way round), and texts
    that are empty or too long.
    """
    task = task_of(saved_model, name)
    limits = saved_model.config.data
    if (task.text_b is None) != (text_b is None):
        raise UserError(f"task `{name}` reads {'one text: drop' if task.text_b is None else 'a pair: give'} --text_b")
    for each in (text, text_b):
        if each is not None and not each.strip():
            raise UserError("--text is empty: nothing to predict from")
        if each is not None and len(each) > limits.max_characters:
            raise UserError(
                f"the text has {len(each):,} characters, more than --max_characters {limits.max_characters:,}; only "
                f"its first {limits.max_length} word pieces would be read"
            )
    saved_model.model.eval()
    texts: list[tuple[str, str | None]] = [(text.strip(), text_b.strip() if text_b else None)]
    batch = batch_of_texts(name, texts, saved_model.tokenizer, max_length=limits.max_length)
    logits = saved_model.engine.forward(saved_model.engine.to_device(batch))[0].cpu()
    value = task.objective.predict(logits.numpy())[0].item()
    record: dict[str, Any] = {"task": name, "prediction": task.objective.format_prediction(value)}
    if task.objective.outputs > 1:
        record["probabilities"] = [round(share, 4) for share in logits.softmax(-1)[0].tolist()]
    elif task.objective.class_count:
        record["probability"] = round(logits.sigmoid().item(), 4)
    return record
