"""Bytes are told in GiB; sizes are rounded up."""

from __future__ import annotations

import pytest

from pal_dist.core.units import GIBIBYTE, MEBIBYTE, ceil_div, gib, round_up


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0.00 GiB"),
        (14.56 * GIBIBYTE, "14.56 GiB"),
        (GIBIBYTE // 10 + 1, "0.10 GiB"),
        (30 * MEBIBYTE, "0.029 GiB"),
        (3 * MEBIBYTE, "0.0029 GiB"),
        (20_000, "0.000019 GiB"),
        (2048 * GIBIBYTE, "2,048.00 GiB"),
    ],
)
def test_gib(size: float, text: str) -> None:
    assert gib(size) == text


@pytest.mark.parametrize(("value", "multiple", "up"), [(0, 8, 0), (1, 8, 8), (8, 8, 8), (9, 8, 16), (5, 1, 5)])
def test_round_up(value: int, multiple: int, up: int) -> None:
    assert round_up(value, multiple) == up
    assert ceil_div(value, multiple) == up // multiple
