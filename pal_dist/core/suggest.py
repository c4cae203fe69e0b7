"""The nearest known name for one that is not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """The known name that is most like `word`; None where none is like it (`cutoff`: from 0, any, to 1, the same)."""
    alike = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return alike[0] if alike else None


def did_you_mean(word: str, known: Iterable[str], *, before: str = "", quote: str = "", otherwise: str = "") -> str:
    """`did you mean --seed?`, or `otherwise` where nothing is like it; without that, all that there is.

    Args:
        before: stands before each name, such as `--`.
        quote: stands around the nearest name.
    """
    names = list(known)
    near = nearest(word, names)
    if near is not None:
        return f"did you mean {quote}{before}{near}{quote}?"
    return otherwise or f"known: {', '.join(before + name for name in names)}"
