"""Plain values against the types of a dataclass."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from pal_dist.core.errors import UserError
from pal_dist.core.shapes import Count, Score, mismatches, read_as


@dataclass(frozen=True)
class Inner:
    size: Count
    kind: Literal["a", "b"] = "a"


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner | None = None
    scores: Mapping[str, Score] = field(default_factory=dict)
    path: Sequence[str] = ()
    more: Any = None


def test_what_fits_is_read() -> None:
    values = {"name": "x", "inner": {"size": 3}, "scores": {"a": None, "b": 1}, "path": ["p"], "unknown": 5}
    assert read_as(Outer, values, where="here") == Outer("x", Inner(3), {"a": None, "b": 1}, ["p"])  # type: ignore[dict-item]
    assert read_as(Outer, {"name": "x", "inner": None}, where="here") == Outer("x")
    assert list(mismatches({"a": math.nan}, Mapping[str, Score])) == []


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([], "here: expected a mapping, found []"),
        ({}, "here: `name` is missing"),
        ({"name": 5}, "here: `name` must be text, found 5"),
        ({"name": "x", "inner": 5}, "here: `inner` must be a mapping or none, found 5"),
        ({"name": "x", "inner": {"size": -1}}, "here: `inner.size` must be a whole number from 0 on, found -1"),
        ({"name": "x", "inner": {"size": True}}, "found True"),
        ({"name": "x", "inner": {"size": 10**30}}, "`inner.size` must be a whole number from 0 on"),
        ({"name": "x", "inner": {"size": 1, "kind": "c"}}, "`inner.kind` must be a or b, found 'c'"),
        (
            {"name": "x", "scores": {"a": math.inf}},
            "`scores.a` must be a finite number",
        ),
        ({"name": "x", "scores": [1]}, "`scores` must be a mapping, found [1]"),
        ({"name": "x", "path": "p"}, "`path` must be a list, found 'p'"),
        ({"name": "x", "path": ["p", 3]}, "`path[1]` must be text, found 3"),
    ],
)
def test_what_does_not_fit_is_told(values: object, says: str) -> None:
    with pytest.raises(UserError) as caught:
        read_as(Outer, values, where="here")
    assert says in str(caught.value)
