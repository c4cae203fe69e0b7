"""Units: bytes are told in GiB, everywhere; sizes are rounded up here and nowhere else."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, overload

if TYPE_CHECKING:  # the help page needs no NumPy
    import numpy as np
    from numpy.typing import NDArray

MEBIBYTE = 1 << 20
GIBIBYTE = 1 << 30


def gib(size: float) -> str:
    """Bytes for people: `1.23 GiB`; below a tenth with two digits that say something, such as `0.0029 GiB`."""
    value = size / GIBIBYTE
    digits = 2 if abs(value) >= 0.1 or not size else 1 - math.floor(math.log10(abs(value)))
    return f"{value:,.{digits}f} GiB"


@overload
def ceil_div(value: int, divisor: int) -> int: ...
@overload
def ceil_div(value: NDArray[np.int64], divisor: int) -> NDArray[np.int64]: ...
def ceil_div(value: Any, divisor: int) -> Any:
    """How many times `divisor` it takes to reach `value`, a whole number or an array of them."""
    return -(-value // divisor)


@overload
def round_up(value: int, multiple: int) -> int: ...
@overload
def round_up(value: NDArray[np.int64], multiple: int) -> NDArray[np.int64]: ...
def round_up(value: Any, multiple: int) -> Any:
    """The least multiple of `multiple` that is no less than `value`, a whole number or an array of them."""
    return ceil_div(value, multiple) * multiple
