"""Rows of every format, and of every dirt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pal_dist.core.errors import UserError
from pal_dist.data.readers import BadRow, Example, read_rows
from pal_dist.tasks.registry import TASKS, Task

SST, PARA, STS, COLA = (TASKS[name] for name in ("sst", "para", "sts", "cola"))


def read(path: Path, task: Task, *, labelled: bool = True) -> list[Example | BadRow]:
    return list(read_rows(path, task, labelled=labelled, max_characters=1000))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "rows"


class TestFormats:
    def test_course_layout(self, file: Path) -> None:
        file.write_text('\tid\tsentence\tsentiment\n0\ta1\t A film . \t3\n7\tb2\t"says ""no"" twice"\t0\n')
        assert read(file, SST) == [
            Example(2, "a1", "A film .", None, 3.0),
            Example(3, "b2", 'says "no" twice', None, 0.0),
        ]

    def test_comma_separated_with_a_line_break_in_a_field(self, file: Path) -> None:
        file.write_text('id,sentence1,sentence2,is_duplicate\nx,"a, b","c\nd",1.0\ny,e,f,0.0\n')
        assert read(file, PARA) == [Example(2, "x", "a, b", "c\nd", 1.0), Example(4, "y", "e", "f", 0.0)]

    def test_json_lines(self, file: Path) -> None:
        rows = [{"id": 5, "sentence1": "a", "sentence2": "b", "similarity": 2.5}, {"sentence1": "a", "similarity": 1}]
        file.write_text("\n".join(map(json.dumps, rows)) + "\n\nnot json\n[1]\n")
        first, *others = read(file, STS)
        assert first == Example(1, "5", "a", "b", 2.5)
        assert [row.line for row in others] == [2, 4, 5]
        assert all(isinstance(row, BadRow) for row in others)
        assert "no field `sentence2`" in others[0].reason

    def test_glue_without_header_and_with_loose_quotes(self, file: Path) -> None:
        file.write_text('gj04\t1\t\tHe said "go.\ngj04\t0\t*\tThe "man left.\n')
        assert read(file, COLA) == [
            Example(1, "", 'He said "go.', None, 1.0),
            Example(2, "", 'The "man left.', None, 0.0),
        ]

    def test_test_split_without_labels(self, file: Path) -> None:
        file.write_text("0\t\tid\tsentence\n1\t0.0\tc9\t A rock \n")
        assert read(file, SST, labelled=False) == [Example(2, "c9", "A rock", None, None)]

    def test_byte_order_mark_and_windows_line_ends(self, file: Path) -> None:
        file.write_bytes("\ufeff\tid\tsentence\tsentiment\r\n0\ta\tfine\t2\r\n".encode())
        assert read(file, SST) == [Example(2, "a", "fine", None, 2.0)]


class TestDirt:
    HEAD = "\tid\tsentence\tsentiment\n"

    @pytest.mark.parametrize(
        ("row", "reason", "contradiction"),
        [
            ("0\ta\t\t1", "`sentence` is empty", False),
            ("0\ta\tx\t", "`sentiment` is empty", False),
            ("0\ta\tx", "expected 4 fields, found 3", False),
            ('0\ta\t"x\t1', "found 3", False),
            ("0\ta\tx\t5", "from 0 to 4, found '5'", True),
            ("0\ta\tx\tgood", "found 'good'", True),
            ("0\ta\t" + "x" * 1001 + "\t1", "1,001 characters", True),
        ],
    )
    def test_bad_rows(self, row: str, reason: str, contradiction: bool, file: Path) -> None:
        file.write_text(f"{self.HEAD}0\ta\tgood\t4\n{row}\n")
        good, bad = read(file, SST)
        assert isinstance(good, Example)
        assert isinstance(bad, BadRow)
        assert bad.line == 3
        assert reason in bad.reason
        assert bad.contradiction == contradiction

    @pytest.mark.parametrize(
        ("content", "says"),
        [
            (b"", "the file is empty"),
            (b"\tid\tsentence\tsentiment\n", "has a header and no rows"),
            (
                b"\tid\tsentense\tsentiment\n0\ta\tb\t1\n",
                r"line 1: expected a column `sentence`.*Did you mean `sentense`",
            ),
            (b"\tid\tsentence\tlabel\n0\ta\tb\t1\n", "line 1: expected a column `sentiment`"),
            (
                "\tid\tsentence\tsentiment\n0\ta\tok\t1\n0\tb\tcaf\xe9\t1\n".encode("latin-1"),
                "line 3: expected UTF-8, found",
            ),
        ],
    )
    def test_bad_files(self, content: bytes, says: str, file: Path) -> None:
        file.write_bytes(content)
        with pytest.raises(UserError, match=says):
            read(file, SST)

    def test_missing_file_names_the_nearest(self, tmp_path: Path) -> None:
        (tmp_path / "ids-sst-trian.csv").write_text("x")
        with pytest.raises(UserError, match=r"Did you mean .*ids-sst-trian\.csv"):
            read(tmp_path / "ids-sst-train.csv", SST)

    def test_real_files_have_just_the_known_dirt(self, shared: Path) -> None:
        bad = {}
        for name in ("sst", "cfimdb", "para", "sts", "cola"):
            task = TASKS[name]
            for split in ("train", "dev"):
                path = shared / "data" / task.files[split]
                rows = list(read_rows(path, task, labelled=True, max_characters=20_000))
                bad |= {(path.name, row.line): row.reason for row in rows if isinstance(row, BadRow)}
        assert bad == {
            ("quora-dev.csv", 248): "column `is_duplicate` is empty",
            ("quora-dev.csv", 1404): "column `sentence2` is empty",
        }
