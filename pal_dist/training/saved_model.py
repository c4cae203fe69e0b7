"""A saved model opened again, ready to predict."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pal_dist.config.resolve import run_from_dict
from pal_dist.config.schema import ModelConfig, RunConfig
from pal_dist.core.errors import UserError
from pal_dist.data.tokenizer import load_tokenizer
from pal_dist.distributed.engine import Engine
from pal_dist.models.multi_task import MultiTaskBert, check_model_options, load_model
from pal_dist.models.pretrained import read_model_config
from pal_dist.monitoring import run_files
from pal_dist.tasks.registry import Task
from pal_dist.training.inputs import InputPaths, locate_inputs

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class SavedModel:
    """A model with what it takes to predict: its tokenizer, its tasks, where data is, a device."""

    model: MultiTaskBert
    tokenizer: Tokenizer
    engine: Engine
    config: RunConfig
    """The settings of its run, as far as they matter here; those given for this call overrule."""
    paths: InputPaths
    tasks: dict[str, Task]
    folder: Path
    """The run's folder, or the model's own."""


def open_model(path: Path, overrides: dict[str, Any], *, cache_dir: Path) -> SavedModel:
    """A run's folder or a model's own folder.

    Args:
        overrides: settings given for this call (data_dir, max_length ...).
        cache_dir: where tokenised corpora are kept unless the settings say otherwise.

    Raises UserError where there is no saved model.
    """
    folder = path / run_files.MODEL if (path / run_files.MODEL / "config.json").is_file() else path
    if not folder.is_dir():
        raise UserError(f"{path}: there is no such run or model folder")
    if not (folder / "config.json").is_file() or (folder == path and (path / run_files.CHECKPOINTS).is_dir()):
        raise UserError(f"{path}: expected a run's folder or a saved model, found neither (no model/config.json)")
    is_run = folder != path
    sections = json.loads((path / run_files.CONFIG).read_text(encoding="utf-8"))["values"] if is_run else {}
    values = {name: value for section in sections.values() for name, value in section.items()}
    model = load_model(folder)
    values.setdefault("max_length", model.config.trained_length)
    config = run_from_dict({"all": {**values, **overrides, "model": str(folder)}})
    paths = locate_inputs(config, cache_dir)
    engine = Engine(precision=config.train.precision)
    engine.model = model.to(engine.device)
    check_model_options(folder.name, read_model_config(folder), ModelConfig(), config.data.max_length)
    return SavedModel(model, load_tokenizer(folder), engine, config, paths, model.config.task_table(), path)
