"""Whole numbers as people write them, read exactly: `9007199254740993` is no number that a float can hold."""

from __future__ import annotations

import re
from decimal import Decimal

from pal_dist.core.documents import LARGEST_INTEGER, LEAST_INTEGER, brief

_FORM = re.compile(r"[+-]?([0-9]+(_[0-9]+)*\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")


def whole_number(text: str) -> int:
    """`32`, `32.0`, `3.2e1` or `1_000` -> the very number.

    Raises ValueError, or OverflowError for one of more than 64 bits.
    """
    text = text.strip()
    if not _FORM.fullmatch(text):
        raise ValueError(f"expected a whole number, found {brief(text)}")
    value = Decimal(text.replace("_", ""))
    if not LEAST_INTEGER <= value <= LARGEST_INTEGER:
        raise OverflowError(f"{brief(text)} is too large; at most {LARGEST_INTEGER:,} is possible")
    if value != value.to_integral_value():
        raise ValueError(f"expected a whole number, found {brief(text)}")
    return int(value)


def is_count(text: str) -> bool:
    """Whether the text is a whole number from 1 on, in digits and nothing else."""
    return bool(re.fullmatch(r"[0-9]{1,19}", text)) and 1 <= int(text) <= LARGEST_INTEGER
