"""Recipes: one yaml per experiment of the paper, of its relatives, or of ours; or the path of such a yaml.

A recipe is settings of `train` under a head, `about`, that says what they reproduce and what to expect.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from pal_dist.core.errors import UserError
from pal_dist.core.suggest import did_you_mean, nearest

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class About:
    """The head of a recipe. All of it is for people; nothing of it changes a run."""

    reproduces: str
    """Which experiment, and where it is described: a section of the paper, or file and line of a program."""
    commands: tuple[str, ...]
    """What to type, in order."""
    hardware: str
    time: str
    """How long it takes there, and who measured it; an estimate is called one."""
    scores: str
    """What to expect and who published it; or that there is nothing to compare with."""
    differs: str = "nothing known"
    """What the settings cannot or do not repeat, and why."""


@dataclass(frozen=True)
class Recipe:
    """A recipe as read: its name or path, its head, and its settings, flat and not yet checked."""

    name: str
    about: About
    settings: dict[str, Any]


def recipe_names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read_recipe(name: str) -> Recipe:
    """A recipe by its name, or by its path where `name` ends in .yaml or .yml.

    Raises UserError for an unknown name (with the nearest one), an unreadable file, and a head with missing, unknown or
    empty fields.
    """
    if name.endswith((".yaml", ".yml")):
        path, where = Path(name).expanduser(), f"--recipe {name}"
    else:
        path, where = FOLDER / f"{name}.yaml", f"recipe {name}"
        if name not in recipe_names():
            near = nearest(name, recipe_names())
            hint = f"did you mean `{near}`? " if near else ""
            raise UserError(
                f"--recipe {name}: there is no such recipe: {hint}`pal-dist recipes` lists them: "
                f"{', '.join(recipe_names())}; or give the path of a yaml"
            )
    content = read_settings(path, where)
    about = content.pop("about", None)
    return Recipe(name, _head(about, where), flatten_sections(content))


def read_settings(path: Path, where: str) -> dict[str, Any]:
    """The top level of a yaml of settings; `where` begins every complaint. Raises UserError."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        raise UserError(f"{where}: there is no such file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{where}: not readable as yaml: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{where}: expected `field: value` lines, found {type(content).__name__}")
    return content


def flatten_sections(content: dict[str, Any]) -> dict[str, Any]:
    """Fields out of their sections, where they are grouped."""
    flat: dict[str, Any] = {}
    for name, value in content.items():
        flat.update(value if isinstance(value, dict) else {name: value})
    return flat


def _head(about: Any, where: str) -> About:
    names = [field.name for field in fields(About)]
    if not isinstance(about, dict):
        raise UserError(
            f"{where}: expected a head, `about:` with {', '.join(names)}; found {type(about).__name__}. Settings "
            f"without a head are a --config"
        )
    problems = [
        f"unknown field `{name}` of `about`: {did_you_mean(str(name), names, quote='`')}"
        for name in about
        if name not in names
    ]
    problems += [f"`about` lacks `{name}`" for name in names if name != "differs" and not about.get(name)]
    if problems:
        raise UserError("\n".join(f"{where}: {problem}" for problem in problems))
    commands = about["commands"] if isinstance(about["commands"], list) else [about["commands"]]
    texts = {name: " ".join(str(value).split()) for name, value in about.items() if name != "commands"}
    return About(commands=tuple(" ".join(str(command).split()) for command in commands), **texts)
