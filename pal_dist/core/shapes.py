"""Whether plain values, as a file of JSON or yaml gives them, have the types that a dataclass says of them.

Strict: a boolean is no number, `5` is no text, a number is finite (as float32 has it), a whole number has
64 bits. A few lines, where a
library that does it would add its own start to every `pal-dist status`.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pal_dist.core.documents import LARGEST_INTEGER, LEAST_INTEGER, brief
from pal_dist.core.errors import UserError

NULL = "null"
Score = Annotated[float, NULL]
"""A number that may be none (NaN), for which JSON has null."""

COUNT = "count"
Count = Annotated[int, COUNT]
"""A whole number from 0 on."""

MAPPINGS, LISTS, UNIONS = (dict, Mapping), (list, Sequence), (Union, types.UnionType)

LARGEST_FLOAT = 3.4e38
"""What float32 holds: no loss, score or time is beyond it, and squares of such numbers are still numbers."""

T = TypeVar("T")


def read_as(kind: Callable[..., T], values: Any, *, where: str) -> T:
    """The dataclass of these values; names that it does not have are left out. Raises UserError with every problem."""
    problems = list(mismatches(values, kind))
    if problems:
        raise UserError("\n".join(f"{where}: {problem}" for problem in problems))
    return _build(kind, values)


def _build(kind: Any, value: Any) -> Any:
    """Dataclasses from mappings whose types have been looked at."""
    if get_origin(kind) in UNIONS:
        kind = next((each for each in get_args(kind) if is_dataclass(each)), kind)
    if not is_dataclass(kind) or value is None:
        return value
    make: Any = kind
    return make(**{name: _build(hint, value[name]) for name, hint in _hints(make).items() if name in value})


def mismatches(value: Any, kind: Any, name: str = "") -> Iterator[str]:
    """What is not as the type says: `seed` must be a whole number, found 'x'.

    Args:
        kind: int, float, str, bool, None, Any, `Score`, `Count`, Literal, a union, Mapping, Sequence or list of such,
            or a dataclass, whose fields a mapping must have as far as they have no default.
        name: what the value is called.
    """
    form = _form_of(kind, value)
    if is_dataclass(form) and not (isinstance(form, type) and isinstance(value, form)):
        yield from _field_mismatches(value, form, name)
    elif get_origin(form) in MAPPINGS and isinstance(value, Mapping):
        key_kind, value_kind = get_args(form)
        for key, each in value.items():
            yield from mismatches(key, key_kind, f"a key of {name}")
            yield from mismatches(each, value_kind, f"{name}.{key}" if name else str(key))
    elif get_origin(form) in LISTS and isinstance(value, (list, tuple)):
        for number, each in enumerate(value):
            yield from mismatches(each, get_args(form)[0], f"{name}[{number}]")
    elif not _is(value, kind):
        yield _says(name, kind, value)


def _says(name: str, kind: Any, value: Any) -> str:
    must = f"`{brief(name)[1:-1]}` must be" if name else "expected"
    return f"{must} {describe(kind)}, found {brief(value)}"


def _form_of(kind: Any, value: Any) -> Any:
    """Of a union the one type that this value is held against, where that is a mapping's or a list's."""
    if get_origin(kind) not in UNIONS:
        return kind
    for option in get_args(kind):
        forms = Mapping if is_dataclass(option) or get_origin(option) in MAPPINGS else (list, tuple)
        structured = is_dataclass(option) or get_origin(option) in (*MAPPINGS, *LISTS)
        if structured and isinstance(value, forms):
            return option
    return kind


def _field_mismatches(value: Any, kind: Any, name: str) -> Iterator[str]:
    if not isinstance(value, Mapping):
        yield _says(name, kind, value)
        return
    hints = _hints(kind)
    for field in fields(kind):
        inner = f"{name}.{field.name}" if name else field.name
        if field.name in value:
            yield from mismatches(value[field.name], hints[field.name], inner)
        elif field.default is MISSING and field.default_factory is MISSING:
            yield f"`{inner}` is missing"


@cache
def _hints(kind: Hashable) -> dict[str, Any]:
    given: Any = kind
    return get_type_hints(given, include_extras=True)


def _is(value: Any, kind: Any) -> bool:
    """Whether the value has this type, where that is to be said in one word."""
    if kind is Any:
        return True
    if get_origin(kind) is Annotated:
        base, mark = get_args(kind)
        if mark == NULL and (value is None or (isinstance(value, float) and math.isnan(value))):
            return True
        return _is(value, base) and (mark != COUNT or value >= 0)
    if get_origin(kind) in UNIONS:
        return any(not list(mismatches(value, option)) for option in get_args(kind))
    if get_origin(kind) is Literal:
        return any(value == option and type(value) is type(option) for option in get_args(kind))
    if kind in (int, float):
        number = isinstance(value, (int, kind)) and not isinstance(value, bool)
        low, high = (LEAST_INTEGER, LARGEST_INTEGER) if isinstance(value, int) else (-LARGEST_FLOAT, LARGEST_FLOAT)
        return number and low <= value <= high
    return isinstance(kind, type) and get_origin(kind) is None and isinstance(value, kind)


def describe(kind: Any) -> str:
    """A type in a message: `a whole number`, `text or none`."""
    origin = get_origin(kind)
    if origin is Annotated:
        base, mark = get_args(kind)
        return f"{describe(base)} or null" if mark == NULL else f"{describe(base)} from 0 on"
    if origin is Literal:
        return " or ".join(map(str, get_args(kind)))
    if origin in UNIONS:
        return " or ".join(describe(option) for option in get_args(kind))
    if origin is not None or is_dataclass(kind):
        return "a list" if origin in LISTS else "a mapping"
    words = {int: "a whole number", float: "a finite number (of float32)", str: "text", bool: "true or false"}
    return words.get(kind, "none")
