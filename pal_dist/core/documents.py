"""Files of yaml and JSON that a person may have written: read as plain values, or refused with the place of the fault.

yaml is read as its version 1.2 says, so that `no`, `010`, `12:30` and `2020-01-02` are the texts that they look like,
not a boolean, 8, 750 and a date. What comes out is mappings with texts as keys, lists, texts, whole numbers, numbers,
booleans and None, and not too much of them: whoever reads on needs to fear neither cycles nor depth nor size.
"""

from __future__ import annotations

import json
import os
import re
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from pal_dist.core.errors import UserError

LARGEST_FILE = 16 << 20
"""Bytes of a file that somebody wrote by hand, or a run beside its weights."""

MOST_VALUES = 100_000
"""Values of a document, each counted as often as aliases repeat it: nine short lines of yaml can say a billion."""

DEEPEST = 40
"""Mappings and lists within one another."""

LEAST_INTEGER, LARGEST_INTEGER = -(1 << 63), (1 << 63) - 1
"""What NumPy, PyTorch and C take."""


def load_yaml(path: Path, *, where: str = "") -> Any:
    """What a yaml file says; None where it is empty. `where` begins every complaint, by default the path.

    Raises UserError for a file that cannot be read, is no yaml, says a thing twice or something that is no plain value.
    """
    where = where or str(path)
    text = _text_of(path, where)
    try:
        content = yaml.load(text, _PlainLoader)
    except RecursionError:
        raise UserError(f"{where}: {_TOO_DEEP}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise UserError(f"{where}: not readable as yaml: {place}{error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{where}: not readable as yaml: {' '.join(str(error).split())}") from None
    _check_plain(content, where)
    return content


def load_json(path: Path, *, where: str = "") -> Any:
    """What a JSON file says. `where` begins every complaint, by default the path.

    Raises UserError for a file that cannot be read, is no JSON, says a thing twice or something that is no plain value.
    """
    where = where or str(path)
    return parse_json(_text_of(path, where), where=where)


def parse_json(text: str, *, where: str) -> Any:
    """What a text of JSON says. Raises UserError as `load_json` does."""
    try:
        content = json.loads(text, object_pairs_hook=_without_repetition, parse_int=_integer)
    except RecursionError:
        raise UserError(f"{where}: {_TOO_DEEP}") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise UserError(f"{where}: not readable as JSON: {place}: {error.msg}") from None
    except ValueError as error:  # a key twice, or a whole number too long
        raise UserError(f"{where}: not readable as JSON: {error}") from None
    _check_plain(content, where, most=len(text))
    return content


def load_mapping(path: Path, *, where: str = "") -> dict[str, Any]:
    """What a file of yaml or, by the end of its name, JSON maps names to. Raises UserError, also for anything else."""
    where = where or str(path)
    content = (load_json if path.suffix == ".json" else load_yaml)(path, where=where)
    if not isinstance(content, dict):
        raise UserError(f"{where}: expected `name: value` pairs, found {brief(content)}")
    return content


def there_is(path: Path) -> bool:
    """Whether this is a file that can be looked at; False for a name too long, or one with a NUL, too."""
    return os.path.isfile(path)  # pathlib's raises for those


def brief(value: Any) -> str:
    """A value as a message quotes it, whatever it is: never longer than a line."""
    try:
        return _BRIEF.repr(value)
    except ValueError:  # an integer of more digits than Python writes
        return f"a {type(value).__name__} of many digits"


_TOO_DEEP = "mappings or lists stand within one another too deep to be read"

_BRIEF = reprlib.Repr()
_BRIEF.maxlevel, _BRIEF.maxdict, _BRIEF.maxlist, _BRIEF.maxtuple = 3, 6, 6, 6
_BRIEF.maxstring, _BRIEF.maxlong, _BRIEF.maxother = 80, 40, 80


def _text_of(path: Path, where: str) -> str:
    try:
        if os.path.isdir(path):
            raise UserError(f"{where}: expected a file, found a folder")
        with open(path, "rb") as file:
            content = file.read(LARGEST_FILE + 1)
        if len(content) > LARGEST_FILE:
            raise UserError(f"{where}: expected a file of settings, found one of more than {LARGEST_FILE:,} bytes")
        return content.decode("utf-8-sig")  # some editors begin a file with a byte order mark
    except FileNotFoundError:
        raise UserError(f"{where}: there is no such file") from None
    except OSError as error:
        raise UserError(f"{where}: not readable: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = 1 + error.object.count(b"\n", 0, error.start)
        raise UserError(
            f"{where}: line {line}: expected text in UTF-8, found the byte {error.object[error.start]:#04x}"
        ) from None
    except UserError:
        raise
    except ValueError:  # a NUL in the path
        raise UserError(f"{where}: there is no such file") from None


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{brief(twice)} stands twice in one mapping")
    return mapping


def _integer(text: str) -> int:
    if len(text) > 20:  # Python itself reads no more than 4,300 digits
        raise ValueError(f"the whole number {brief(text)} is too large; at most {LARGEST_INTEGER:,} is possible")
    return int(text)


def _check_plain(content: Any, where: str, *, most: int = MOST_VALUES) -> None:
    """Raises UserError for too many values, too deep ones, and those that no setting can have."""
    count, waiting = 0, [(iter([("", content)]), 0)]
    while waiting:
        values, depth = waiting[-1]
        if (entry := next(values, None)) is None:
            waiting.pop()
            continue
        count += 1
        name, value = entry
        if count > most:
            raise UserError(f"{where}: expected at most {most:,} values, found more")
        if problem := _problem_of(value):
            raise UserError(f"{where}: {f'{brief(name)}: ' if name else ''}{problem}")
        if isinstance(value, (dict, list)):
            if depth == DEEPEST:
                raise UserError(f"{where}: {_TOO_DEEP}")
            waiting.append((_children(name, value), depth + 1))


def _children(name: str, value: dict[str, Any] | list[Any]) -> Iterator[tuple[str, Any]]:
    if isinstance(value, list):
        return ((name, each) for each in value)
    return ((key, part) for key, each in value.items() for part in (key, each))


def _problem_of(value: Any) -> str | None:
    if isinstance(value, int) and not LEAST_INTEGER <= value <= LARGEST_INTEGER:
        return f"the whole number {brief(value)} is too large; at most {LARGEST_INTEGER:,} is possible"
    if isinstance(value, str) and "\0" in value:
        return f"the text {brief(value)} has a NUL character in it"
    if isinstance(value, str) and re.search("[\ud800-\udfff]", value):
        return f"the text {brief(value)} has half of a surrogate pair in it, which is no character"
    return None


_KINDS = {"int": "whole number", "float": "number", "bool": "boolean"}


class _PlainLoader(yaml.SafeLoader):
    """yaml 1.2's core schema; keys are texts, and each stands once."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012 (PyYAML's own form)
    yaml_constructors = {  # noqa: RUF012
        tag: constructor
        for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.rpartition(":")[2] in ("null", "bool", "int", "float", "str", "seq", "map")
    }

    def construct_document(self, node: Any) -> Any:
        return self.construct_object(node, deep=True)  # which refuses what contains itself

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, LookupError, ArithmeticError):
            kind = _KINDS.get(str(node.tag).rpartition(":")[2], "value")
            raise yaml.constructor.ConstructorError(
                problem=f"{brief(node.value)} is no {kind} that can be read", problem_mark=node.start_mark
            ) from None

    def construct_undefined(self, node: Any) -> Any:
        raise yaml.constructor.ConstructorError(
            problem=f"the tag {brief(node.tag)} has no meaning here; leave it out", problem_mark=node.start_mark
        )

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        if isinstance(node, yaml.MappingNode):
            self._check_keys(node)
        return super().construct_mapping(node, deep=deep)

    def _check_keys(self, node: yaml.MappingNode) -> None:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            problem = None
            if not isinstance(key, str):
                problem = f"the key {brief(key)} is no name; put it in quotes if it is meant as one"
            elif key in seen:
                problem = f"{brief(key)} stands twice in one mapping"
            if problem:
                raise yaml.constructor.ConstructorError(problem=problem, problem_mark=key_node.start_mark)
            seen.add(key)


_PlainLoader.add_constructor(None, _PlainLoader.construct_undefined)

for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
):
    _PlainLoader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), ["" if c == "\0" else c for c in _first]
    )
