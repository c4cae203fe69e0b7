"""Rows of a jsonl file: one JSON object a line, its values as text, as the file writes them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from pal_dist.core.console import quoted


@dataclass(frozen=True)
class NoText:
    """A value that cannot be read as text."""

    kind: str
    """In words."""


Record = dict[str | int, str | NoText]


class _Number(str):
    """A number, in the file's own digits: none is lost, and none too many to convert."""


class _Object(list[tuple[str, object]]):
    """The names and values of an object, in order, a name that stands there twice as well."""


LITERALS = {True: "true", False: "false", None: ""}

DECODER = json.JSONDecoder(
    object_pairs_hook=_Object,
    parse_int=_Number,
    parse_float=_Number,
    parse_constant=lambda name: None if name == "NaN" else _Number(name),  # pandas writes a missing value so
)


def json_records(lines: Iterator[str], first: int) -> Iterator[tuple[int, Record | str]]:
    """(line, fields by name) or (line, the reason why it is no object). `first`: number of the first line."""
    for number, text in enumerate(lines, start=first):
        if text.strip():
            yield number, _record(text)


def _record(text: str) -> Record | str:
    try:
        pairs = DECODER.decode(text)
    except json.JSONDecodeError as error:
        return f"not a JSON object: {error.msg} at column {error.colno}"
    except RecursionError:
        return "not readable: lists or objects within one another too deeply"
    if not isinstance(pairs, _Object):
        return f"expected a JSON object, found {_kind(pairs)}"
    record: Record = {}
    for name, value in pairs:
        if name in record:
            return f"expected each name once in the object, found {quoted(name, '`')} twice"
        record[name] = _text(value)
    return record


def _text(value: object) -> str | NoText:
    if isinstance(value, str):
        return str(value)
    if isinstance(value, list):
        return NoText(_kind(value))
    return LITERALS[value]  # type: ignore[index]  # nothing else is left


def _kind(value: object) -> str:
    if isinstance(value, _Object):
        return "a JSON object"
    if isinstance(value, list):
        return "a JSON list"
    return f"the number {quoted(value, '')}" if isinstance(value, _Number) else "a JSON text or literal"
