"""Units: bytes are told in GiB, everywhere; sizes are rounded up here and nowhere else."""

from __future__ import annotations

import math

MEBIBYTE = 1 << 20
GIBIBYTE = 1 << 30


def gib(size: float) -> str:
    """Bytes for people: `1.23 GiB`; below a tenth with two digits that say something, such as `0.0029 GiB`."""
    value = size / GIBIBYTE
    digits = 2 if abs(value) >= 0.1 or not size else 1 - math.floor(math.log10(abs(value)))
    return f"{value:,.{digits}f} GiB"


def ceil_div(value: int, divisor: int) -> int:
    """How many times `divisor` it takes to reach `value`."""
    return -(-value // divisor)


def round_up(value: int, multiple: int) -> int:
    """The least multiple of `multiple` that is no less than `value`."""
    return ceil_div(value, multiple) * multiple
