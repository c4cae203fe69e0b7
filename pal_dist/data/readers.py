"""Rows of csv, tsv and jsonl files, streamed; a row that cannot be used comes out as a `BadRow` that says why."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from pal_dist.core.console import listed, printable, quoted
from pal_dist.core.errors import UserError
from pal_dist.core.suggest import nearest
from pal_dist.data.file_kind import explain_unreadable
from pal_dist.data.json_rows import NoText, Record, json_records
from pal_dist.data.layout import Layout, columns_read, layout_of, quoting_of
from pal_dist.tasks.registry import Task

csv.field_size_limit(2**31 - 1)  # a swallowed file must reach our own check, which names the row

HALF_CHARACTER = re.compile("[\ud800-\udfff]")
"""One of the two halves by which JSON may write a character; alone it is none, and nothing can store it."""


@dataclass(frozen=True)
class Example:
    """One usable row: texts stripped of outer blanks, label as its number (None where the split has none)."""

    line: int
    id: str
    text_a: str
    text_b: str | None
    label: float | None


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used."""

    line: int
    reason: str
    contradiction: bool
    """True: the row is whole but contradicts the task (label out of range, text too long). False: it is damaged."""


def read_rows(path: Path, task: Task, *, labelled: bool, max_characters: int) -> Iterator[Example | BadRow]:
    """Every row of a file in order, with the line (from 1) it begins at.

    Raises UserError for a file that is missing, empty, wrongly encoded or no text, and for a column that is missing or
    stands there twice.
    """
    require_file(path, task)
    layout = layout_of(path, task, labelled=labelled)
    columns = columns_read(task, labelled=labelled)
    try:
        with explain_unreadable(path, layout.kind), layout.kind.open_text(path) as file:
            lines = islice(file, layout.skipped, None)
            first = layout.skipped + 1
            records = json_records(lines, first) if layout.is_json else _csv_records(lines, path, task, columns, layout)
            for line, record in records:
                if isinstance(record, str):
                    yield BadRow(line, record, contradiction=False)
                else:
                    yield _example(record, line, task, columns, labelled, max_characters)
    except csv.Error as error:
        raise UserError(f"{path}: not readable as csv: {error}") from None


def _csv_records(
    lines: Iterator[str], path: Path, task: Task, columns: tuple[str | int, ...], layout: Layout
) -> Iterator[tuple[int, Record | str]]:
    """Fields by column name (by position where the task names columns by position) or the reason they are not whole."""
    rows = csv.reader(lines, delimiter=layout.delimiter, quoting=quoting_of(task))
    first = layout.skipped + 1
    head = next(rows, [])
    names: list[str | int] = [name.strip() for name in head]
    has_header = not isinstance(task.text_a, int)
    if not has_header:
        names = list(range(len(head)))
    _check_columns(path, task, columns, names, layout)
    empty = True
    begin = first + rows.line_num if has_header else first
    for fields in rows if has_header else chain([head], rows):
        line, begin = begin, first + rows.line_num
        if not fields:
            continue  # a blank line is no row
        empty = False
        if len(fields) != len(names):
            yield line, _not_whole(fields, len(names), task)
        else:
            yield line, dict(zip(names, fields, strict=True))
    if empty:
        raise UserError(f"{path}: the file has a header and no rows; expected rows of task `{task.name}`")


def _check_columns(
    path: Path, task: Task, columns: tuple[str | int, ...], names: list[str | int], layout: Layout
) -> None:
    where = f"{path}, line {layout.skipped + 1}"
    for column in columns:
        if column not in names:
            near = nearest(str(column), map(str, names))
            hint = f" Did you mean {quoted(near, '`')}?" if near else ""
            raise UserError(
                f"{where}: expected a column `{column}`, found {listed(names, '`')} (read as {layout.separated}).{hint}"
            )
    for column in (*columns, *([] if task.id is None else [task.id])):
        places = [place for place, name in enumerate(names, start=1) if name == column]
        if len(places) > 1:
            found = " and ".join(map(str, places))
            raise UserError(
                f"{where}: expected one column {quoted(column, '`')}, found {len(places)}: columns {found}, "
                f"counted from 1. Rename those that are not meant"
            )


def _not_whole(fields: list[str], expected: int, task: Task) -> str:
    """Why a row of so many fields is not one of the table."""
    advice = "an unclosed quote?" if task.quoting else "a tab inside a text?"
    if len(fields) > expected:
        advice = "a separator inside a text that is not quoted?" if task.quoting else advice
        if not any(field.strip() for field in fields[expected:]):
            advice = "a separator ends the row, and not the header: drop it there, or add one here"
    return f"expected {expected} fields, found {len(fields)} ({advice})"


def _example(
    record: Record, line: int, task: Task, columns: tuple[str | int, ...], labelled: bool, max_characters: int
) -> Example | BadRow:
    values: dict[str | int, str] = {}
    for column in (*columns, task.id):
        if column is None or (column == task.id and column not in record):
            continue
        if column not in record:
            return BadRow(line, f"no field `{column}`; found {listed(record)}", contradiction=False)
        value = record[column]
        if reason := _no_text(value):
            return BadRow(line, f"column `{column}`: {reason}", contradiction=False)
        values[column] = str(value).strip()
        if column in columns and not values[column]:
            return BadRow(line, f"column `{column}` is empty", contradiction=False)
    text_a = values[task.text_a]
    text_b = None if task.text_b is None else values[task.text_b]
    for number, text in enumerate((text_a, text_b)):
        if text is not None and len(text) > max_characters:
            reason = f"column `{columns[number]}` has {len(text):,} characters, --max_characters is {max_characters:,}"
            return BadRow(line, reason + " (an unclosed quote?)", contradiction=True)
    label = None
    if labelled:
        try:
            label = task.objective.parse(values[task.label])
        except ValueError as error:
            return BadRow(line, f"label `{task.label}`: {error}", contradiction=True)
    return Example(line, "" if task.id is None else values.get(task.id, ""), text_a, text_b, label)


def _no_text(value: str | NoText) -> str | None:
    """Why the value is no text; None where it is one."""
    if isinstance(value, NoText):
        return f"expected text, found {value.kind}"
    half = None if value.isascii() else HALF_CHARACTER.search(value)
    if half is None:
        return None
    return f"character {half.start() + 1} is half of one, {printable(half[0])} without the other half"


def require_file(path: Path, task: Task) -> None:
    """Raises UserError where the file is missing, with the nearest name that is there."""
    folder = path.parent
    if path.is_file():
        return
    if not folder.is_dir():
        raise UserError(f"{path}: there is no folder {folder}; --data_dir must hold the files of task `{task.name}`")
    near = nearest(path.name, [entry.name for entry in folder.iterdir()], cutoff=0.9)
    hint = f" Did you mean {folder / near}?" if near else ""
    raise UserError(
        f"{path}: there is no such file; task `{task.name}` reads it.{hint} `pal-dist tasks` shows every task's files."
    )
