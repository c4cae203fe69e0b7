"""The saved model that evaluate and predict ask."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pal_dist.commands.options import PREDICT_OPTIONS
from pal_dist.commands.saved_model import load_split, model_from_flags, task_of
from pal_dist.config.resolve import names_where
from pal_dist.core.errors import UserError
from pal_dist.training.saved_model import SavedModel


@pytest.fixture
def saved_model(model_folder: Path, small_data: Path, cache_dir: Path) -> Iterator[SavedModel]:
    flags = {"model": str(model_folder), "data_dir": str(small_data), "precision": "fp32", "split": "dev"}
    saved_model = model_from_flags(None, flags, cache_dir=cache_dir)
    yield saved_model
    saved_model.engine.close()


def test_settings_given_anew_overrule_and_options_are_none_of_them(saved_model: SavedModel, small_data: Path) -> None:
    assert saved_model.paths.data_dir == small_data
    assert saved_model.config.train.precision == "fp32"
    assert saved_model.config.data.max_length == 48, "that of the model"


def test_no_option_of_the_verbs_has_the_name_of_a_setting_that_may_be_given_anew() -> None:
    """Else the option would swallow it."""
    assert PREDICT_OPTIONS.keys() & set(names_where(for_saved_model=True)) == set()


def test_one_model_at_a_time(model_folder: Path, cache_dir: Path) -> None:
    for name, flags in (("a", {"run": "b"}), (None, {"run": "a", "model": "b"})):
        with pytest.raises(UserError, match="name one run or model folder, found a, b"):
            model_from_flags(name, flags, cache_dir=cache_dir)


def test_its_tasks(saved_model: SavedModel) -> None:
    assert task_of(saved_model, "sts") == saved_model.tasks["sts"]
    with pytest.raises(UserError, match="this model has no task `cola`; it has sst, para, sts"):
        task_of(saved_model, "cola")


def test_splits(saved_model: SavedModel, small_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(load_split(saved_model, None, "dev", labelled=True)) == ["sst", "para", "sts"]
    assert list(load_split(saved_model, ["sts"], "dev", labelled=False)) == ["sts"]
    with pytest.raises(UserError, match="none of the tasks has a `nonsense` file"):
        load_split(saved_model, None, "nonsense", labelled=True)
    assert "warning: sst is left out: it has no `nonsense` file" in capsys.readouterr().err
