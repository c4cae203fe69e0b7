"""What the verbs `config`, `recipes` and `tasks` show."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

from pal_dist.config.recipes import read_recipe, recipe_names
from pal_dist.config.resolve import format_value, settings
from pal_dist.config.schema import RunConfig, default_learning_rate
from pal_dist.core.console import table
from pal_dist.core.errors import UserError
from pal_dist.models.pretrained import find_model, read_model_config
from pal_dist.tasks.registry import TASKS, resolve_tasks


def settings_table(config: RunConfig, origins: dict[str, str], *, cache_dir: Path) -> str:
    """Every setting's effective value, and where it came from."""
    values = {name: value for section in config.to_dict().values() for name, value in section.items()}
    values["cache_dir"] = values["cache_dir"] or cache_dir
    if values["learning_rate"] is None and (width := _encoder_width(config.model.model)):
        values["learning_rate"] = default_learning_rate(config.train.mode, width)
        origins = {**origins, "learning_rate": f"default ({config.train.mode}, width {width})"}
    rows = [[settings()[name].section, name, format_value(value), origins[name]] for name, value in values.items()]
    return table(["section", "setting", "value", "origin"], rows)


def _encoder_width(model: str) -> int | None:
    """Width of an encoder that is here already; a name on the hub is not fetched just to be shown."""
    if model != "minilm" and not Path(model).is_dir():
        return None
    try:
        return int(read_model_config(find_model(model))["hidden_size"])
    except (UserError, KeyError):
        return None


def recipes_text(name: str | None) -> str:
    """What every recipe, or the one named, is about; of one alone its settings too. Raises UserError."""
    blocks = []
    for recipe in map(read_recipe, [name] if name else recipe_names()):
        lines = [recipe.name]
        for field, value in vars(recipe.about).items():
            texts = value if isinstance(value, tuple) else (value,)
            for text in texts:
                lines += textwrap.wrap(
                    text, 118, initial_indent=f"  {field:<11} ", subsequent_indent=" " * 14, break_on_hyphens=False
                )
        if name:
            lines += ["", *(f"  --{key} {format_value(value)}" for key, value in recipe.settings.items())]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def tasks_table(names: str | None) -> str:
    """The tasks of the table, or those named, separated by commas. Raises UserError for one that there is not."""
    rows = []
    for task in resolve_tasks(names.split(",")) if names else TASKS.values():
        objective = json.dumps(task.objective.to_dict()).strip("{}").replace('"', "")
        texts = str(task.text_a) if task.text_b is None else f"{task.text_a}, {task.text_b}"
        rows.append([task.name, objective, task.metric, texts, str(task.label), " ".join(task.files.values())])
    return table(["task", "predicts", "headline metric", "texts", "label", "files"], rows)
