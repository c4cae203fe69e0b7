"""What JSON can hold and a text cannot."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pal_dist.data.readers import BadRow, Example, read_rows
from pal_dist.tasks.objectives import Binary, Classes, Objective, Score
from pal_dist.tasks.registry import Task

TASK = Task("mine", {"train": "x"}, text_a="text", label="label", objective=Binary(), metric="accuracy", id="id")


def read(tmp_path: Path, *lines: str, objective: Objective = TASK.objective) -> list[Example | BadRow]:
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(lines), encoding="utf-8")
    return list(read_rows(file, replace(TASK, objective=objective), labelled=True, max_characters=9000))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ('{"text": ["good", "film"], "label": 1}', "column `text`: expected text, found a JSON list"),
        ('{"text": {"a": 1}, "label": 1}', "column `text`: expected text, found a JSON object"),
        ('{"text": "x", "label": [1]}', "column `label`: expected text, found a JSON list"),
        ('{"text": "x", "label": 1, "id": [7]}', "column `id`: expected text, found a JSON list"),
        ('{"text": "ab\\ud83d", "label": 1}', "column `text`: character 3 is half of one, \\ud83d without"),
        ('{"text": "x", "label": 1, "id": "\\ude00"}', "column `id`: character 1 is half of one"),
        ('{"text": "x", "label": "\\ude00"}', "column `label`: character 1 is half of one"),
        ('{"text": null, "label": 1}', "column `text` is empty"),
        ('{"text": NaN, "label": 1}', "column `text` is empty"),
        ('{"text": "x", "label": 1, "label": 0}', "each name once in the object, found `label` twice"),
        ('{"text": "x", "label": ' + "[" * 100_000 + "}", "too deeply"),
        ('{"text": "x", "label": 1, "n": ' + "[" * 5000 + "]" * 5000 + "}", "too deeply"),
        ('{"text": "x", "label": ' + "9" * 6000 + "}", "found '99999"),
        ('{"text": "x", "label": Infinity}', "found 'Infinity'"),
        ('{"text": "x", "l\\u001b[31m": 1}', "no field `label`; found text, l\\x1b[31m"),
        ('{"text": "x", "label": "\\u001b[31m"}', "found '\\x1b[31m'"),
        ("7", "expected a JSON object, found the number 7"),
        ("[[1]]", "expected a JSON object, found a JSON list"),
        ('"\\u001b[31m"', "expected a JSON object, found a JSON text"),
    ],
)
def test_rows_that_cannot_be_used(row: str, reason: str, tmp_path: Path) -> None:
    _, bad, good = read(tmp_path, '{"text": "a", "label": 0}', row, '{"text": "b", "label": 1}')
    assert isinstance(bad, BadRow)
    assert bad.line == 2
    assert reason in bad.reason
    assert isinstance(good, Example)
    bad.reason.encode()
    assert bad.reason.isprintable()
    assert len(bad.reason) < 300


def test_what_is_not_read_may_be_anything(tmp_path: Path) -> None:
    row = '{"text": "x", "label": 1, "list": [1, {}], "big": ' + "9" * 6000 + ', "half": "\\ud83d", "none": NaN}'
    assert read(tmp_path, row) == [Example(1, "", "x", None, 1.0)]


def test_pairs_of_halves_are_characters(tmp_path: Path) -> None:
    assert read(tmp_path, '{"text": "\\ud83c\\udfac", "label": 1}') == [Example(1, "", "🎬", None, 1.0)]


def test_numbers_keep_their_digits(tmp_path: Path) -> None:
    row = '{"text": 1.10, "label": 1.0, "id": 12345678901234567890123}'
    assert read(tmp_path, row) == [Example(1, "12345678901234567890123", "1.10", None, 1.0)]
    assert read(tmp_path, '{"text": "x", "label": 2.5e0}', objective=Score(0, 5))[0].label == 2.5


TRUE, FALSE = '{"text": "x", "label": true}', '{"text": "x", "label": false}'


@pytest.mark.parametrize("objective", [Binary(), Binary(("false", "true")), Binary(("False", "True"))])
def test_true_and_false_are_labels_of_a_binary_task(objective: Objective, tmp_path: Path) -> None:
    """The last names are those of a yaml's `[false, true]`."""
    assert [row.label for row in read(tmp_path, TRUE, FALSE, objective=objective)] == [1.0, 0.0]


def test_of_two_classes_they_are_not(tmp_path: Path) -> None:
    (bad,) = read(tmp_path, TRUE, objective=Classes(2))
    assert "0 to 1, found 'true' (labels true and false are those of `objective: binary`)" in bad.reason
    (bad,) = read(tmp_path, TRUE, objective=Binary(("no", "yes")))
    assert "expected one of no, yes, found 'true'" in bad.reason
