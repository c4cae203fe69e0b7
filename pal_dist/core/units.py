"""Units: bytes are told in GiB, everywhere; sizes are rounded up here and nowhere else."""

from __future__ import annotations

MEBIBYTE = 1 << 20
GIBIBYTE = 1 << 30


def gib(size: float) -> str:
    """Bytes for people: `1.23 GiB`; below a tenth with a digit more, below a hundredth with two."""
    value = size / GIBIBYTE
    digits = 2 if abs(value) >= 0.1 or not size else 3 if abs(value) >= 0.01 else 4
    return f"{value:,.{digits}f} GiB"


def ceil_div(value: int, divisor: int) -> int:
    """How many times `divisor` it takes to reach `value`."""
    return -(-value // divisor)


def round_up(value: int, multiple: int) -> int:
    """The least multiple of `multiple` that is no less than `value`."""
    return ceil_div(value, multiple) * multiple
