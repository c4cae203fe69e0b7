"""Law 8 for recipes: each is found, read, says what to expect, and fits a T4. (Two real steps of each: tests/ranks.)"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from pal_dist.commands.plan import PlanRequest, make_plan
from pal_dist.config.recipes import FOLDER, flatten_sections, read_recipe, recipe_names
from pal_dist.config.resolve import coerce, resolve, settings
from pal_dist.core.errors import UserError
from tests.support.paths import README

EXPECTED = {
    "sst_pretrain",
    "sst_finetune",
    "cfimdb_pretrain",
    "cfimdb_finetune",
    "multitask_baseline",
    "pal_finetune",
    "pal_progressive",
    "small_batch_finetune",
    "individual_pretrain",
    "joint_finetune",
    "bert_multitask_learning",
    "authors_pal",
    "authors_low_rank",
    "authors_houlsby",
    "authors_houlsby_plus_pal",
    "authors_top_attention",
    "minilm_three",
}


def test_nothing_is_left_out() -> None:
    assert {path.stem for path in FOLDER.rglob("*.yaml")} == EXPECTED == set(recipe_names())
    assert {path.suffix for path in FOLDER.rglob("*") if path.is_file() and "__pycache__" not in path.parts} == {
        ".py",
        ".yaml",
    }


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_it_is_read_and_says_what_to_expect(name: str) -> None:
    text = (FOLDER / f"{name}.yaml").read_text()
    assert text.startswith("# ")
    recipe = read_recipe(name)
    run, origins = resolve({}, recipe=name)
    values = {field: value for section in run.to_dict().values() for field, value in section.items()}
    assert {field for field, origin in origins.items() if origin == f"recipe {name}"} == recipe.settings.keys()
    assert {field: coerce(value, settings()[field].kind) for field, value in recipe.settings.items()} == {
        field: values[field] for field in recipe.settings
    }
    assert any(f"--recipe {name} --data_dir data" in command for command in recipe.about.commands)
    for command in recipe.about.commands:  # every command's settings exist, and its recipes
        flags = re.findall(r"--(\w+)", command)
        assert set(flags) <= {*values, "recipe", "gpu"}, command
        assert set(re.findall(r"--recipe (\w+)", command)) <= EXPECTED
    assert "estimate" in recipe.about.time
    assert len(recipe.about.scores) > 20


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_it_fits_a_t4(name: str) -> None:
    """By the closed form, with every example as long as it may be; test_closed_form.py holds that to the trace."""
    flags = {"model": "bert-base-uncased"} if name == "joint_finetune" else {}
    planned = make_plan(PlanRequest(*resolve(flags, recipe=name), gpu="t4"), certify=False).planned
    assert planned.fits
    assert planned.plan.options.optimizer == "adamw"


def test_sections_only_group_the_fields() -> None:
    assert flatten_sections({"batch": {"batch_size": 16, "sampling": "sqrt"}, "seed": 3}) == {
        "batch_size": 16,
        "sampling": "sqrt",
        "seed": 3,
    }


def test_recipe_then_file_then_command_line(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("batch: {batch_size: 16}\nseed: 3\n")
    run, origins = resolve({"seed": "4"}, str(file), "pal_finetune")
    assert (run.train.seed, run.batch.batch_size, run.optimizer.learning_rate) == (4, 16, 1e-5)
    named = [origins[name] for name in ("seed", "batch_size", "learning_rate", "max_steps")]
    assert named == ["command line", f"file {file}", "recipe pal_finetune", "default"]


def test_a_recipe_of_one_s_own(tmp_path: Path) -> None:
    about = {"reproduces": "x", "commands": "y", "hardware": "z", "time": "t", "scores": "s"}
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump({"about": about, "batch_size": 5}))
    run, origins = resolve({}, recipe=str(path))
    assert (run.batch.batch_size, origins["batch_size"]) == (5, f"recipe {path}")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"abot": 1}, r"unknown setting --abot \(recipe .*\)"),
        ({"about": {"reproduce": "x"}}, "unknown field `reproduce` of `about`: did you mean `reproduces`?"),
        ({"about": {"scores": ""}}, "`about` lacks `scores`"),
        ({"about": None}, "expected a head, `about:`"),
        ({"batch_sise": 4}, "unknown setting --batch_sise .*did you mean --batch_size"),
        ({"epochs": "many"}, "--epochs takes whole number; found 'many'"),
    ],
)
def test_mistakes_in_a_recipe(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    content = yaml.safe_load((FOLDER / "sst_finetune.yaml").read_text())
    if isinstance(change.get("about"), dict):
        change = {"about": content["about"] | change["about"]}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(content | change, sort_keys=False))
    with pytest.raises(UserError, match=says):
        resolve({}, recipe=str(tmp_path / "own.yaml"))


def test_unknown_names() -> None:
    with pytest.raises(UserError, match=r"did you mean `authors_pal`.*minilm_three"):
        read_recipe("author_pal")
    with pytest.raises(UserError, match="there is no such file"):
        read_recipe("nowhere/own.yaml")


def test_readme_names_every_recipe() -> None:
    assert {name for name in EXPECTED if name in README.read_text()} == EXPECTED
