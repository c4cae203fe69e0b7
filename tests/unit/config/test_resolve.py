"""Settings: every field has a meaning, every mistake is named, all of them at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest

from pal_dist.config.resolve import describe, resolve, run_from_dict, settings
from pal_dist.config.schema import RunConfig
from pal_dist.core.atomic_io import to_json
from pal_dist.core.errors import UserError

OTHER_VALUES = {
    "memory": "plan_only",
    "checkpoint_layers": "1",
    "save_every": "15m",
    "batch_lengths": "even",
    "cuda_graphs": "off",
    "compile": "off",
    "attention": "plain",
    "keep_checkpoints": "5",
    "strategy": "zero2",
    "hang_minutes": "5",
    "features": "off",
    "steps_per_epoch": "7",
    "schedule": "constant",
    "weighting": "scale",
    "conflict": "pcgrad",
    "adapter_bottleneck": "8",
    "data_dir": "x",
    "tasks": "sst",
    "max_length": "64",
    "max_characters": "9",
    "bad_rows": "stop",
    "cache_dir": "y",
    "model": "z",
    "adapter": "none",
    "adapter_hidden": "192",
    "adapter_heads": "6",
    "adapter_layers": "0,1",
    "pooling": "mean",
    "head_layers": "2",
    "dropout": "0.2",
    "head_dropout": "0.3",
    "batch_size": "8",
    "sampling": "sqrt",
    "step_tasks": "one",
    "tokens_per_micro_batch": "999",
    "window_batches": "5",
    "optimizer": "adamw_8bit",
    "learning_rate": "1e-4",
    "weight_decay": "0",
    "warmup": "0",
    "max_gradient_norm": "0",
    "output_dir": "o",
    "mode": "pretrain",
    "epochs": "1",
    "max_steps": "5",
    "precision": "fp32",
    "seed": "3",
    "evaluate_every": "10",
    "patience": "2",
    "keep_best": "each",
    "log_every": "1",
    "resume": "no",
}


def test_every_field_is_a_flag_with_a_docstring_and_changes_the_run() -> None:
    assert OTHER_VALUES.keys() == settings().keys()
    for name, text in OTHER_VALUES.items():
        assert len(settings()[name].help) > 20
        assert describe(settings()[name].kind)
        assert resolve({name: text})[0] != RunConfig(), name


def test_choices_are_those_of_the_tables() -> None:
    from pal_dist.optim.optimizers import OPTIMIZERS

    assert set(get_args(settings()["optimizer"].kind)) == OPTIMIZERS.keys()


def test_later_layers_win_and_origins_are_remembered(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("batch: {batch_size: 8, sampling: sqrt}\nseed: 5\n")
    run, origins = resolve({"seed": "6"}, str(file))
    assert (run.batch.batch_size, run.batch.sampling, run.train.seed) == (8, "sqrt", 6)
    assert (origins["batch_size"], origins["seed"], origins["epochs"]) == (f"file {file}", "command line", "default")


def test_a_run_survives_being_written() -> None:
    # (a conflict needs the tasks and the mode that others of these take away)
    run = resolve({name: text for name, text in OTHER_VALUES.items() if name != "conflict"})[0]
    assert run_from_dict(run.to_dict()) == run


@pytest.mark.parametrize("name", ["max_gradient_norm", "hang_minutes"])
def test_a_number_without_bound_survives_strict_json(name: str) -> None:
    run = resolve({name: "inf"})[0]
    assert run_from_dict(json.loads(to_json(run.to_dict()))) == run


def test_all_problems_at_once_with_the_nearest_name() -> None:
    with pytest.raises(UserError) as caught:
        resolve({"learning_rat": "1", "epochs": "many", "sampling": "fair", "seed": "true"})
    text = str(caught.value)
    assert "--learning_rat (command line): did you mean --learning_rate?" in text
    assert "--epochs takes whole number; found 'many'" in text
    assert "--sampling takes round_robin|random|proportional|sqrt|annealed; found 'fair'" in text
    assert "--seed" in text


def test_none_is_written_none() -> None:
    assert resolve({"max_steps": "none", "adapter_layers": "None"})[0].train.max_steps is None


@pytest.mark.parametrize(
    ("content", "says"), [("- a", "field: value"), (":\n:", "not readable"), (None, "no such file")]
)
def test_bad_config_files(content: str | None, says: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    if content:
        file.write_text(content)
    with pytest.raises(UserError, match=says):
        resolve({}, str(file))
