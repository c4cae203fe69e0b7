"""The saved model that `evaluate` and `predict` ask: opened by its name, its tasks chosen, their splits read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pal_dist.commands.options import PREDICT_OPTIONS
from pal_dist.core.console import say
from pal_dist.core.errors import UserError
from pal_dist.data.token_cache import Corpus
from pal_dist.monitoring.status import newest_model
from pal_dist.tasks.registry import Task
from pal_dist.training.evaluate import Predictions, predict
from pal_dist.training.inputs import load_corpora
from pal_dist.training.run_folder import RUNS
from pal_dist.training.saved_model import SavedModel, open_model


def model_from_flags(name: str | None, flags: Mapping[str, str], *, cache_dir: Path) -> SavedModel:
    """The model that `name`, --run or --model names, opened; without any, that of the newest run under ./runs.

    Args:
        name: folder of a run or of a saved model.
        flags: of the verb, as typed: its options, and settings that overrule those of the model's run.
        cache_dir: where tokenised corpora are kept unless the settings say otherwise.

    Raises UserError where there is no such model, or more than one is named.
    """
    names = [each for each in (name, flags.get("run"), flags.get("model")) if each]
    if len(names) > 1:
        raise UserError(f"name one run or model folder, found {', '.join(names)}")
    settings = {setting: value for setting, value in flags.items() if setting not in PREDICT_OPTIONS}
    return open_model(Path(names[0]) if names else newest_model(RUNS), settings, cache_dir=cache_dir)


def task_of(saved_model: SavedModel, name: str) -> Task:
    """The model's task of this name. Raises UserError where it has none."""
    if name not in saved_model.tasks:
        raise UserError(f"this model has no task `{name}`; it has {', '.join(saved_model.tasks)}")
    return saved_model.tasks[name]


def load_split(
    saved_model: SavedModel, names: Sequence[str] | None, split: str, *, labelled: bool
) -> dict[str, Corpus]:
    """The split of the named tasks, by name; None: of all that have the file (those left out are told).

    Args:
        labelled: read labels; without, the file needs none.

    Raises UserError for a task that the model lacks, where no task has the file, and for faults of a file.
    """
    having: list[Task] = []
    for task in [task_of(saved_model, name) for name in (saved_model.tasks if names is None else names)]:
        file = task.file(split)
        if names is not None or (file and (saved_model.paths.data_dir / file).is_file()):
            having.append(task)
        elif saved_model.engine.is_main:
            say(f"warning: {task.name} is left out: " + (f"no file {file}" if file else f"it has no `{split}` file"))
    if not having:
        raise UserError(f"none of the tasks has a `{split}` file in {saved_model.paths.data_dir}")
    corpora = load_corpora(
        saved_model.config, tuple(having), split, saved_model.paths, saved_model.tokenizer, labelled=labelled
    )
    for corpus in corpora.values():
        for line in corpus.report.lines():
            say(f"warning: {line}")
    return corpora


def predict_split(saved_model: SavedModel, task: Task, corpus: Corpus) -> Predictions:
    """The model's predictions for a whole split, on every rank. Every rank must call it."""
    return predict(
        saved_model.engine,
        task,
        corpus,
        budget=saved_model.config.memory.token_budget,
    )
