"""Words for the terminal: lines on standard error, what a file says quoted safely, tables, durations."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable

NOT_SHOWN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What a terminal obeys instead of showing it (escapes, line ends, turns of direction), and halves of characters, which
cannot be written at all."""

MOST_QUOTED = 80
"""Characters of a file's words in a message: enough to find them again."""

MOST_LISTED = 12
"""Names in a message before `and 988 more`."""


def say(text: str = "") -> None:
    """A line for the person, on standard error: standard output is for results that another program may read.

    Nothing in it moves the cursor or colours the screen, whatever file its words come from.
    """
    print(printable(text, keep="\n\t"), file=sys.stderr, flush=True)


def printable(text: str, *, keep: str = "") -> str:
    """The text with everything that a terminal would obey written as its escape, such as `\\x1b`.

    Args:
        keep: characters that stay as they are.
    """
    return NOT_SHOWN.sub(lambda found: found[0] if found[0] in keep else _escape(found[0]), text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def quoted(words: object, mark: str = "'") -> str:
    """Words of the user's file, for a message: between marks, on one line, shortened, safe for a terminal.

    What cannot be seen is escaped too, such as a byte order mark in the middle of a header: it makes two names differ.
    """
    text = str(words)
    shown = "".join(each if each.isprintable() else _escape(each) for each in text[:MOST_QUOTED])
    more = f"... ({len(text):,} characters)" if len(text) > MOST_QUOTED else ""
    return f"{mark}{shown}{mark}{more}"


def listed(names: Iterable[object], mark: str = "") -> str:
    """Names for a message, those of the user's file too: quoted safely; of many, the first and how many more."""
    every = list(names)
    more = f" and {len(every) - MOST_LISTED:,} more" if len(every) > MOST_LISTED else ""
    return ", ".join(quoted(name, mark) for name in every[:MOST_LISTED]) + more


def table(header: list[str], rows: list[list[str]]) -> str:
    """Columns aligned with spaces; numbers to the right."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    numeric = [all(_is_number(row[column]) for row in rows) for column in range(len(header))]
    lines = []
    for row in [header, ["-" * width for width in widths], *rows]:
        cells = (
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(row, widths, numeric, strict=True)
        )
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _is_number(text: str) -> bool:
    return text.replace(".", "").replace(",", "").replace("-", "").replace("%", "").isdigit() or text in ("", "nan")


def duration(seconds: float) -> str:
    """Seconds for people: `4:07`, `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
