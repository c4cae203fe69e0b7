"""The config's fields as flags: read from text or yaml, with the nearest name for a wrong one.

A value comes from the defaults in `schema`, then a recipe, a config file, the command line; the last one wins, and
`resolve` remembers where each came from.
"""

from __future__ import annotations

import ast
import inspect
import types
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pal_dist.config.recipes import flatten_sections, read_recipe, read_settings
from pal_dist.config.schema import RunConfig, SettingUse
from pal_dist.core.errors import UserError
from pal_dist.core.suggest import did_you_mean


@dataclass(frozen=True)
class Setting:
    """One field of the tree as a flag."""

    section: str
    name: str
    kind: Any
    default: Any
    help: str
    use: SettingUse


@cache
def settings() -> dict[str, Setting]:
    """Every flag by name, with its type, default and docstring, read from the classes of `schema`."""
    by_name: dict[str, Setting] = {}
    for section in fields(RunConfig):
        cls = get_type_hints(RunConfig)[section.name]
        hints, documents = get_type_hints(cls), _field_docstrings(cls)
        for entry in fields(cls):
            assert entry.name not in by_name, f"two sections have a field {entry.name}"
            by_name[entry.name] = Setting(
                section.name,
                entry.name,
                hints[entry.name],
                entry.default,
                documents[entry.name],
                entry.metadata.get("use", SettingUse()),
            )
    return by_name


def names_where(**use: bool) -> tuple[str, ...]:
    """Settings that are good for all of the named uses (see `SettingUse`), in the order of the config."""
    return tuple(
        name
        for name, setting in settings().items()
        if all(getattr(setting.use, kind) == wanted for kind, wanted in use.items())
    )


def _field_docstrings(cls: type) -> dict[str, str]:
    """The string under each field, which Python itself drops: read from the source."""
    body = ast.parse(inspect.getsource(cls)).body[0]
    assert isinstance(body, ast.ClassDef)
    documents: dict[str, str] = {}
    for entry, following in zip(body.body, body.body[1:], strict=False):
        if isinstance(entry, ast.AnnAssign) and isinstance(entry.target, ast.Name):
            assert isinstance(following, ast.Expr), f"{entry.target.id} has no docstring"
            assert isinstance(following.value, ast.Constant), f"{entry.target.id} has no docstring"
            documents[entry.target.id] = " ".join(str(following.value.value).split())
    return documents


def describe(kind: Any) -> str:
    """A type as a person reads it: `whole number`, `a|b`, `number or none`."""
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(describe(option) for option in get_args(kind))
    if get_origin(kind) is tuple:
        return describe(get_args(kind)[0]) + ",..."
    return {int: "whole number", float: "number", str: "text", type(None): "none"}[kind]


def format_value(value: Any) -> str:
    """A setting's value as the command line writes it."""
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    return "none" if value is None else str(value)


def coerce(value: Any, kind: Any) -> Any:
    """A value from the command line (text) or a yaml (already typed) as the field's type. Raises ValueError."""
    if get_origin(kind) in (Union, types.UnionType):
        options = get_args(kind)
        if type(None) in options and (value is None or str(value).lower() in ("none", "null")):
            return None
        return coerce(value, next(option for option in options if option is not type(None)))
    if get_origin(kind) is Literal:
        if value in get_args(kind):
            return value
    elif get_origin(kind) is tuple:
        parts = value if isinstance(value, (list, tuple)) else str(value).split(",")
        return tuple(coerce(part, get_args(kind)[0]) for part in (str(part).strip() for part in parts) if part)
    elif kind is str:
        return str(value)
    elif not isinstance(value, bool):  # int and float; True is no number here
        number = float(value)
        if kind is float:
            return number
        if number.is_integer():
            return int(number)
    raise ValueError


def from_command_line(flags: Mapping[str, Any]) -> tuple[RunConfig, dict[str, str]]:
    """`resolve` with --recipe and --config among the flags."""
    of_run = {name: value for name, value in flags.items() if name not in ("recipe", "config")}
    return resolve(of_run, flags.get("config"), flags.get("recipe"))


def resolve(
    flags: Mapping[str, Any], file: str | None = None, recipe: str | None = None
) -> tuple[RunConfig, dict[str, str]]:
    """Defaults < recipe < config file < flags -> the run and, for each field, where its value came from.

    A config file is a yaml of field names, flat or grouped by section. Raises UserError with every problem at once.
    """
    values: dict[str, Any] = {name: setting.default for name, setting in settings().items()}
    origins = dict.fromkeys(values, "default")
    problems: list[str] = []
    layers = [(f"recipe {recipe}", read_recipe(recipe).settings)] if recipe else []
    layers += [(f"file {file}", flatten_sections(read_settings(Path(file), f"--config {file}")))] if file else []
    for origin, layer in [*layers, ("command line", dict(flags))]:
        for name, value in layer.items():
            if name not in values:
                hint = did_you_mean(name, values, before="--", otherwise="`pal-dist train --help` lists all")
                problems.append(f"unknown setting --{name} ({origin}): {hint}")
                continue
            kind = settings()[name].kind
            try:
                values[name] = coerce(value, kind)
                origins[name] = origin
            except (ValueError, TypeError):
                problems.append(f"--{name} takes {describe(kind)}; found {value!r} ({origin})")
    if problems:
        raise UserError("\n".join(problems))
    sections: dict[str, dict[str, Any]] = {}
    for name, setting in settings().items():
        sections.setdefault(setting.section, {})[name] = values[name]
    hints = get_type_hints(RunConfig)
    return RunConfig(**{section: hints[section](**entries) for section, entries in sections.items()}), origins


def run_from_dict(sections: Mapping[str, Mapping[str, Any]]) -> RunConfig:
    """The inverse of `RunConfig.to_dict`, as written beside a run."""
    flags = {name: value for section in sections.values() for name, value in section.items()}
    return resolve(flags)[0]
