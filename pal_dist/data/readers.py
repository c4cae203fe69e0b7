"""Rows of csv, tsv and jsonl files, streamed; a row that cannot be used comes out as a `BadRow` that says why."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

from pal_dist.core.errors import UserError
from pal_dist.core.suggest import nearest
from pal_dist.tasks.registry import Task

csv.field_size_limit(2**31 - 1)  # a swallowed file must reach our own check, which names the row


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

    Raises UserError for a missing, empty or wrongly encoded file and for a missing column.
    """
    require_file(path, task)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            head = file.readline()
            lines = chain([head], file)
            if not head:
                raise UserError(f"{path}: the file is empty; expected rows of task `{task.name}`")
            columns = _columns(task, labelled)
            is_json = head.lstrip().startswith("{")
            records = _json_records(lines) if is_json else _csv_records(lines, path, task, columns)
            for line, record in records:
                if isinstance(record, str):
                    yield BadRow(line, record, contradiction=False)
                else:
                    yield _example(record, line, task, columns, labelled, max_characters)
    except UnicodeDecodeError:
        raise UserError(_wrong_encoding(path)) from None
    except csv.Error as error:
        raise UserError(f"{path}: not readable as csv: {error}") from None


def _columns(task: Task, labelled: bool) -> tuple[str | int, ...]:
    wanted = (task.text_a, task.text_b, task.label if labelled else None)
    return tuple(column for column in wanted if column is not None)


Record = dict[str | int, str]


def _csv_records(
    lines: Iterator[str], path: Path, task: Task, columns: tuple[str | int, ...]
) -> Iterator[tuple[int, Record | str]]:
    """Fields by column name (by position where the task names columns by position) or the reason they are not whole."""
    head = next(lines)
    delimiter = "\t" if "\t" in head else ","
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if task.quoting else csv.QUOTE_NONE
    rows = csv.reader(chain([head], lines), delimiter=delimiter, quoting=quoting)
    names: list[str | int]
    begin = 1
    if isinstance(task.text_a, int):
        names = list(range(len(next(csv.reader([head], delimiter=delimiter, quoting=quoting)))))
    else:
        names, begin = [name.strip() for name in next(rows)], rows.line_num + 1
    for column in columns:
        if column not in names:
            raise UserError(_missing_column(path, column, names))
    empty = True
    for fields in rows:
        line, begin = begin, rows.line_num + 1
        if not fields:
            continue  # a blank line is no row
        empty = False
        if len(fields) != len(names):
            advice = "an unclosed quote?" if task.quoting else "a tab inside a text?"
            yield line, f"expected {len(names)} fields, found {len(fields)} ({advice})"
        else:
            yield line, dict(zip(names, fields, strict=True))
    if empty:
        raise UserError(f"{path}: the file has a header and no rows; expected rows of task `{task.name}`")


def _json_records(lines: Iterator[str]) -> Iterator[tuple[int, Record | str]]:
    for number, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        try:
            record = json.loads(text)
        except json.JSONDecodeError as error:
            yield number, f"not a JSON object: {error.msg} at column {error.colno}"
            continue
        if isinstance(record, dict):
            yield number, {key: "" if value is None else str(value) for key, value in record.items()}
        else:
            yield number, f"expected a JSON object, found {type(record).__name__}"


def _missing_column(path: Path, column: str | int, names: list[str | int]) -> str:
    near = nearest(str(column), map(str, names))
    hint = f" Did you mean `{near}`?" if near else ""
    return f"{path}, line 1: expected a column `{column}`, found {', '.join(f'`{name}`' for name in names)}.{hint}"


def _example(
    record: Record, line: int, task: Task, columns: tuple[str | int, ...], labelled: bool, max_characters: int
) -> Example | BadRow:
    for column in columns:
        if column not in record:
            return BadRow(line, f"no field `{column}`; found {', '.join(map(str, record))}", contradiction=False)
        if not record[column].strip():
            return BadRow(line, f"column `{column}` is empty", contradiction=False)
    text_a = record[task.text_a].strip()
    text_b = None if task.text_b is None else record[task.text_b].strip()
    for number, text in enumerate((text_a, text_b)):
        if text is not None and len(text) > max_characters:
            reason = f"column `{columns[number]}` has {len(text):,} characters, --max_characters is {max_characters:,}"
            return BadRow(line, reason + " (an unclosed quote?)", contradiction=True)
    label = None
    if labelled:
        try:
            label = task.objective.parse(record[task.label].strip())
        except ValueError as error:
            return BadRow(line, f"label `{task.label}`: {error}", contradiction=True)
    name = record.get(task.id) if task.id is not None else None
    return Example(line, (name or "").strip(), text_a, text_b, label)


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


def _wrong_encoding(path: Path) -> str:
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:  # noqa: PERF203
                byte = line[error.start : error.start + 1].hex()
                return (
                    f"{path}, line {number}: expected UTF-8, found byte 0x{byte} at column {error.start + 1}. Convert "
                    f"the file, for example: iconv -f WINDOWS-1252 -t UTF-8 {path.name} > new && mv new {path.name}"
                )
    return f"{path}: not UTF-8"  # UTF-8 may be whole line by line and the decoder still disagree: do not guess where
