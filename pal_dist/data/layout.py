"""How the rows of a file stand in it: as a table, separated by what, or as JSON lines; told by its first lines."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, TextIO

from pal_dist.core.console import listed, printable, quoted
from pal_dist.core.errors import UserError
from pal_dist.data.file_kind import FileKind, explain_unreadable, kind_of
from pal_dist.tasks.registry import Task

DELIMITERS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "vertical bars"}

LOOKED_AT = 20
"""Lines by which a separator is told in a file without header."""

SEPARATOR_LINE = re.compile(r'"?sep=([^\s\w"]|\t)"?\s*', re.IGNORECASE)
"""Excel's first line; it stands before the header and says what separates."""

ONE_A_LINE = (
    'python -c "import json; [print(json.dumps(row)) for row in json.load(open({name!r}))]" > {stem}.jsonl makes '
    "such a file of it"
)


@dataclass(frozen=True)
class Layout:
    """How a file is to be read."""

    kind: FileKind
    is_json: bool
    skipped: int
    """Lines before the header, or before the first row where there is none: blank ones and Excel's `sep=`."""
    delimiter: str = ","
    from_separator_line: bool = False

    @property
    def separated(self) -> str:
        """In words."""
        return "separated by " + DELIMITERS.get(self.delimiter, quoted(self.delimiter))

    @property
    def told(self) -> str:
        """What of it is not as usual, in words; empty where all is."""
        words = []
        if self.from_separator_line:
            words = [f"{self.separated}, as its `sep=` line says"]
        elif self.delimiter not in ",\t":
            words = [self.separated]
        return "; ".join([*words, *self.kind.told])


def columns_read(task: Task, *, labelled: bool) -> tuple[str | int, ...]:
    """Columns without which a row cannot be used."""
    wanted = (task.text_a, task.text_b, task.label if labelled else None)
    return tuple(column for column in wanted if column is not None)


def layout_of(path: Path, task: Task, *, labelled: bool) -> Layout:
    """Raises UserError for a file that is empty, no text, or JSON other than one object a line."""
    kind = kind_of(path)
    with explain_unreadable(path, kind), kind.open_text(path) as file:
        skipped, lines = _first_lines(file, has_header=not isinstance(task.text_a, int))
        if not lines:
            raise UserError(f"{path}: the file is empty; expected rows of task `{task.name}`")
        if lines[0].lstrip().startswith(("[", "{")):
            _refuse_other_json(path, lines)
        if lines[0].lstrip().startswith("{"):
            return Layout(kind, is_json=True, skipped=skipped)
        if said := SEPARATOR_LINE.fullmatch(lines[0]):
            return Layout(kind, False, skipped + 1, said[1], from_separator_line=True)
        delimiter = _delimiter(path, lines, task, columns_read(task, labelled=labelled))
        return Layout(kind, False, skipped, delimiter)


def _first_lines(file: TextIO, *, has_header: bool) -> tuple[int, list[str]]:
    """Blank lines before the first, and lines from there. Without a header, one of separators alone is an empty row."""
    blanks = None if has_header else " \r\n"
    skipped = 0
    for line in file:
        if line.strip(blanks):
            return skipped, [line, *islice(file, LOOKED_AT - 1)]
        skipped += 1
    return skipped, []


def _refuse_other_json(path: Path, lines: list[str]) -> None:
    first = lines[0].strip()
    cure = ONE_A_LINE.format(name=printable(path.name), stem=printable(path.stem))
    if re.match(r"\[\s*(\{|$)", first) or (first.startswith("[") and isinstance(_parsed(first), list)):
        raise UserError(f"{path}: expected one JSON object a line, found a JSON array; {cure}")
    following = next((line.strip() for line in lines[1:] if line.strip()), "}")
    if first.startswith("{") and _is_cut(first) and (first[-1] in "{[,:" or not following.startswith("{")):
        raise UserError(
            f"{path}: expected one JSON object a line, found one over several lines; jq -c . {printable(path.name)} > "
            f"{printable(path.stem)}.jsonl makes such a file of it"
        )


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _is_cut(text: str) -> bool:
    """Whether what is wrong with the JSON is that it ends too early."""
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return error.pos >= len(text) or error.msg.startswith("Unterminated string")
    except (ValueError, RecursionError):
        return False
    return False


def _delimiter(path: Path, lines: list[str], task: Task, columns: tuple[str | int, ...]) -> str:
    """Tab where the first line has one, else comma; another where only with that one the columns are there."""
    usual = "\t" if "\t" in lines[0] else ","
    fits = _is_steady if isinstance(task.text_a, int) else _has_columns
    fitting = [delimiter for delimiter in DELIMITERS if fits(lines, delimiter, task, columns)]
    if usual in fitting:
        return usual
    if len(fitting) > 1:
        found = " or ".join(DELIMITERS[delimiter] for delimiter in fitting)
        raise UserError(
            f"{path}: what separates its columns cannot be told: {listed(columns, '`')} are there with {found}. Put a "
            f"first line such as sep={fitting[0]} into it"
        )
    if fitting:
        return fitting[0]
    return usual if usual in lines[0] else max(DELIMITERS, key=lines[0].count)


def _has_columns(lines: list[str], delimiter: str, task: Task, columns: tuple[str | int, ...]) -> bool:
    return set(columns) <= {name.strip() for name in _split(lines[:1], delimiter, task)[0]}


def _is_steady(lines: list[str], delimiter: str, task: Task, columns: tuple[str | int, ...]) -> bool:
    """Whether every row has as many fields, and has the columns."""
    counts = {len(fields) for fields in _split(lines, delimiter, task) if fields}
    return len(counts) == 1 and min(counts) > max(int(column) for column in columns)


def _split(lines: list[str], delimiter: str, task: Task) -> list[list[str]]:
    try:
        return list(csv.reader(lines, delimiter=delimiter, quoting=quoting_of(task)))
    except csv.Error:  # told where the rows are read
        return [[]]


def quoting_of(task: Task) -> Literal[0, 3]:
    """How Python's csv names it."""
    return csv.QUOTE_MINIMAL if task.quoting else csv.QUOTE_NONE
