"""Whole numbers are read exactly, or not at all."""

from __future__ import annotations

import pytest

from pal_dist.core.whole_numbers import is_count, whole_number


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("9007199254740993", 2**53 + 1),
        (" -9223372036854775808 ", -(2**63)),
        ("9223372036854775807", 2**63 - 1),
        ("32.0", 32),
        ("1e3", 1000),
        ("9.007199254740993e15", 2**53 + 1),
        ("1_000", 1000),
        ("+5", 5),
    ],
)
def test_the_very_number(text: str, value: int) -> None:
    assert whole_number(text) == value


@pytest.mark.parametrize("text", ["", "x", "1.5", "nan", "inf", "0x10", "²", "1__0", "1e", "--1", "1 2"])
def test_no_whole_number(text: str) -> None:
    with pytest.raises(ValueError):
        whole_number(text)


@pytest.mark.parametrize("text", ["9223372036854775808", "1e999", "-1e19", "9" * 5000])
def test_too_large(text: str) -> None:
    with pytest.raises(OverflowError, match="at most 9,223,372,036,854,775,807"):
        whole_number(text)


def test_counts() -> None:
    assert all(map(is_count, ("1", "007", "9223372036854775807")))
    assert not any(map(is_count, ("", "0", "-1", "1.0", "²", "9223372036854775808", "9" * 5000)))
