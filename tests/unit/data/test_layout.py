"""By what a table is separated, and which JSON is read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pal_dist.core.errors import UserError
from pal_dist.data.layout import layout_of
from pal_dist.data.readers import Example, read_rows
from pal_dist.tasks.objectives import Classes
from pal_dist.tasks.registry import Task

TASK = Task("mine", {"train": "rows.csv"}, text_a="text", label="label", objective=Classes(2), metric="accuracy")
BY_POSITION = replace(TASK, text_a=0, label=1)
ROW = {"text": "fine, really", "label": 1}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "rows.csv"


def read(path: Path, task: Task = TASK, *, labelled: bool = True) -> list[object]:
    return list(read_rows(path, task, labelled=labelled, max_characters=1000))


@pytest.mark.parametrize(
    ("content", "line", "told"),
    [
        ("text\tlabel\nfine, really\t1\n", 2, ""),
        ('text,label\n"fine, really",1\n', 2, ""),
        ("text;label\r\nfine, really;1\r\n", 2, "separated by semicolons"),
        ("text|label\nfine, really|1\n", 2, "separated by vertical bars"),
        ('"text";"label"\n"fine, really";1\n', 2, "separated by semicolons"),
        ("sep=;\r\ntext;label\r\nfine, really;1\r\n", 3, "separated by semicolons, as its `sep=` line says"),
        ('"sep=,"\ntext,label\n"fine, really",1\n', 3, "separated by commas, as its `sep=` line says"),
        ("SEP=\t\ntext\tlabel\nfine, really\t1\n", 3, "separated by tabs, as its `sep=` line says"),
        ("\n \r\ntext\tlabel\n\nfine, really\t1\n", 5, ""),
        ("\n\n" + json.dumps(ROW) + "\n", 3, ""),
        (json.dumps(ROW), 1, ""),
    ],
)
def test_what_is_read(content: str, line: int, told: str, file: Path) -> None:
    file.write_bytes(content.encode())
    assert read(file) == [Example(line, "", "fine, really", None, 1.0)]
    assert layout_of(file, TASK, labelled=True).told == told


def test_without_header_rows_say_it(file: Path) -> None:
    """A comma gives two fields here as well; only the semicolon does so in every row."""
    file.write_text("fine, really;1\nbad;0\nso, so, so;1\n")
    assert [row.label for row in read(file, BY_POSITION)] == [1.0, 0.0, 1.0]
    file.write_text("fine;really,1\nbad;,0\n")
    assert [row.text_a for row in read(file, BY_POSITION)] == ["fine;really", "bad;"], "the usual one, where it fits"
    file.write_text("\t\nfine\t1\n")
    first, second = read(file, BY_POSITION)
    assert "column `0` is empty" in first.reason
    assert second == Example(2, "", "fine", None, 1.0)


def test_unlabelled_texts_alone_keep_their_separators(file: Path) -> None:
    file.write_text('text\n"a, b; c"\nd; e\n')
    assert [row.text_a for row in read(file, labelled=False)] == ["a, b; c", "d; e"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("\n\n  \n", "the file is empty"),
        ("text;sentiment\nx;1\n", "column `label`, found `text`, `sentiment`.*separated by semicolons"),
        ("text,label,label\nx,0,1\n", "line 1: expected one column `label`, found 2: columns 2 and 3, counted from 1"),
        ("text,label,text,text\nx,0,1,2\n", "one column `text`, found 3: columns 1 and 3 and 4"),
        ("a\x1b[31m,b\n1,2\n", r"found `a\\x1b\[31m`, `b`"),
        (",".join(map(str, range(500))) + "\n", "`11` and 488 more"),
        (json.dumps([ROW, ROW]), "found a JSON array.*json.load.*rows.jsonl"),
        (json.dumps([ROW, ROW], indent=1), "found a JSON array"),
        ("\n[\n" + json.dumps(ROW) + "]", "found a JSON array"),
        ('["a", 1]\n["b", 0]\n', "found a JSON array"),
        (json.dumps(ROW, indent=2), r"over several lines.*jq -c \. rows.csv"),
        ('{"rows": [\n' + json.dumps(ROW) + "\n]}", "over several lines"),
    ],
)
def test_what_is_refused(content: str, says: str, file: Path) -> None:
    file.write_text(content)
    with pytest.raises(UserError, match=says):
        read(file)


def test_in_doubt_nothing_is_guessed(file: Path) -> None:
    file.write_text("text;a|text\nx;y|z\n")
    with pytest.raises(UserError, match=r"cannot be told: `text` are there.*semicolons or vertical bars.*sep=;"):
        read(file, replace(TASK, id=None), labelled=False)


def test_the_ids_column_may_not_stand_twice_either(file: Path) -> None:
    file.write_text("id,text,label,id\na,x,1,b\n")
    with pytest.raises(UserError, match="one column `id`, found 2: columns 1 and 4"):
        read(file, replace(TASK, id="id"))
    assert len(read(file)) == 1, "what is not read may"


def test_a_separator_at_the_end_of_every_row_is_named(file: Path) -> None:
    file.write_text("text,label\nx,1,\ny,0,\n")
    assert [row.line for row in read(file)] == [2, 3]
    assert all("a separator ends the row, and not the header" in row.reason for row in read(file))
    file.write_text("text,label,\nx,1,\n")
    assert read(file) == [Example(2, "", "x", None, 1.0)]


def test_a_first_row_that_is_cut_is_one_bad_row(file: Path) -> None:
    file.write_text('{"text": "fi\n' + json.dumps(ROW) + "\n")
    first, second = read(file)
    assert "not a JSON object" in first.reason
    assert second == Example(2, "", "fine, really", None, 1.0)
