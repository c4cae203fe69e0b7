"""GLUE as the hub has it, written as its own files are."""

from __future__ import annotations

from pathlib import Path

import pytest

from pal_dist.data.readers import BadRow, Example, read_rows
from pal_dist.tasks.registry import TASKS, Task


def read(path: Path, task: Task, *, labelled: bool = True) -> list[Example | BadRow]:
    return list(read_rows(path, task, labelled=labelled, max_characters=1000))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "rows"


class TestFetchedGlue:
    """What `data fetch` writes is what the table of tasks reads."""

    @pytest.mark.parametrize(
        ("name", "row", "labels", "expected"),
        [
            ("cola", {"sentence": "A  b\tc.", "label": 1, "idx": 0}, None, ("A b c.", None, 1.0)),
            ("mrpc", {"sentence1": "a", "sentence2": 'b "c', "label": 0, "idx": 0}, None, ("a", 'b "c', 0.0)),
            ("qqp", {"question1": "a", "question2": "b", "label": 1, "idx": 0}, None, ("a", "b", 1.0)),
            ("stsb", {"sentence1": "a", "sentence2": "b", "label": 3.8, "idx": 0}, None, ("a", "b", 3.8)),
            (
                "mnli",
                {"premise": "a", "hypothesis": "b", "label": 1, "idx": 0},
                ["entailment", "neutral", "contradiction"],
                ("a", "b", 2.0),
            ),
            (
                "qnli",
                {"question": "a", "sentence": "b", "label": 0, "idx": 0},
                ["entailment", "not_entailment"],
                ("a", "b", 1.0),
            ),
            ("sst2", {"sentence": "a", "label": 0, "idx": 0}, None, ("a", None, 0.0)),
        ],
    )
    def test_round_trip(self, name: str, row: dict, labels: list[str] | None, expected: tuple, file: Path) -> None:
        from pal_dist.data.download import glue_text

        file.write_text(glue_text(TASKS[name], [row, row], labels=labels, labelled=True))
        found = read(file, TASKS[name])
        assert len(found) == 2
        assert (found[0].text_a, found[0].text_b, pytest.approx(found[0].label)) == expected

    @pytest.mark.parametrize(
        ("name", "split", "expected"),
        [
            ("mnli", "train", "train"),
            ("mnli", "dev", "validation_matched"),
            ("mnli", "dev_mismatched", "validation_mismatched"),
            ("mnli", "test_mismatched", "test_mismatched"),
            ("qnli", "dev", "validation"),
        ],
    )
    def test_splits_have_the_hub_s_names(self, name: str, split: str, expected: str) -> None:
        from pal_dist.data.download import hub_split

        assert hub_split(TASKS[name], split) == expected
