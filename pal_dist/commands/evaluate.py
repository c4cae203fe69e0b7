"""The verb `evaluate`: metrics of a saved model on whole splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pal_dist.commands.saved_model import load_split, model_from_flags, predict_split
from pal_dist.core.atomic_io import to_json
from pal_dist.core.console import say, table
from pal_dist.training.saved_model import SavedModel


def evaluate(name: str | None, flags: Mapping[str, str], *, cache_dir: Path) -> str | None:
    """Say the scores as a table; returns them as a line of JSON, `{"dev": {"sst": {"accuracy": 0.5}}}`.

    Args:
        name: folder of a run or of a saved model.
        flags: EVALUATE_OPTIONS of options.py, and settings that overrule those of the model's run, as typed.
        cache_dir: where tokenised corpora are kept unless the settings say otherwise.

    Raises UserError. Every rank must call it; all but the first return None.
    """
    split = flags.get("split", "dev")
    saved_model = model_from_flags(name, flags, cache_dir=cache_dir)
    names = flags["tasks"].split(",") if "tasks" in flags else None
    scores = score_split(saved_model, names, split)
    is_main = saved_model.engine.is_main
    if is_main:
        if saved_model.paths.synthetic:
            say("SYNTHETIC text: these scores say nothing about real data")
        rows = [[task, metric, f"{score:.4f}"] for task, metrics in scores.items() for metric, score in metrics.items()]
        say(table(["task", "metric", split], rows))
    saved_model.engine.close()
    return to_json({split: scores}) if is_main else None


def score_split(saved_model: SavedModel, names: Sequence[str] | None, split: str) -> dict[str, dict[str, float]]:
    """{task: {metric: value}} of a whole split, for the named tasks or all that have the file. Raises UserError."""
    corpora = load_split(saved_model, names, split, labelled=True)
    return {
        task: predict_split(saved_model, saved_model.tasks[task], corpus).metrics() for task, corpus in corpora.items()
    }
