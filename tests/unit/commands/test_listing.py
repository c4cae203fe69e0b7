"""What `config`, `recipes` and `tasks` show."""

from __future__ import annotations

import re

import pytest

from pal_dist.cli import main
from pal_dist.config.recipes import recipe_names
from pal_dist.config.resolve import settings
from pal_dist.tasks.registry import TASKS
from tests.support.command_line import mistake


def test_config_tells_origins(capsys: pytest.CaptureFixture[str]) -> None:
    main(["config", "--batch_size", "8"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["batch", "batch_size", "8", "command", "line"] in rows
    assert ["train", "epochs", "3", "default"] in rows
    assert [row[1] for row in rows[2:]] == list(settings())


def test_config_of_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    main(["config", "--recipe", "authors_pal", "--epochs", "2"])
    rows = {line.split()[1]: line for line in capsys.readouterr().out.splitlines()}
    assert re.search(r"annealed +recipe authors_pal$", rows["sampling"])
    assert re.search(r"2 +command line$", rows["epochs"])


def test_tasks_lists_all(capsys: pytest.CaptureFixture[str]) -> None:
    main(["tasks"])
    assert len(capsys.readouterr().out.splitlines()) == 2 + len(TASKS)
    main(["tasks", "--tasks", "sst,sts"])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:]] == ["sst", "sts"]


def test_recipes_lists_all(capsys: pytest.CaptureFixture[str]) -> None:
    main(["recipes"])
    text = capsys.readouterr().out
    assert set(re.findall(r"^(\w+)$", text, flags=re.MULTILINE)) == set(recipe_names())
    for field in ("reproduces", "commands", "hardware", "time", "scores"):
        assert len(re.findall(rf"^  {field} ", text, flags=re.MULTILINE)) >= len(recipe_names())
    main(["recipes", "cfimdb_pretrain"])
    assert ".780" in (one := capsys.readouterr().out)
    assert "--max_length 512" in one
    assert "sst_finetune" not in one


def test_an_unknown_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean `sst_finetune`?" in mistake(capsys, ["recipes", "sst_finetun"])
