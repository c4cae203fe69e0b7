"""Lengths of texts, as they come."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def lengths_like_text(count: int, seed: int = 0) -> NDArray[np.int32]:
    """Tokens of so many examples, from 4 to 128."""
    return np.clip(np.random.default_rng(seed).lognormal(3.2, 0.45, count), 4, 128).astype(np.int32)
