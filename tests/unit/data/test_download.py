"""What is fetched is whole, and in the layout that the table of tasks reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from pal_dist.core.errors import UserError
from pal_dist.data import download
from pal_dist.data.download import fetch, glue_text, hub_split
from pal_dist.data.readers import Example, read_rows
from pal_dist.tasks.registry import TASKS


class TestCourseFiles:
    @pytest.fixture
    def site(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """Stands for the course's site."""
        folder = tmp_path / "site"
        folder.mkdir()
        monkeypatch.setattr(download, "COURSE_URL", folder.as_uri() + "/")
        return folder

    def test_what_is_not_there_yet_is_downloaded(
        self, site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for file in TASKS["sst"].files.values():
            (site / file).write_text(f"{file} of the site")
        data_dir = tmp_path / "data"
        data_dir.mkdir()
        own = data_dir / TASKS["sst"].files["dev"]
        own.write_text("my own")
        assert [path.name for path in fetch(data_dir, ["sst"])] == ["ids-sst-train.csv", "ids-sst-test-student.csv"]
        assert (data_dir / "ids-sst-train.csv").read_text() == "ids-sst-train.csv of the site"
        assert own.read_text() == "my own"
        assert f"{own}: already here" in capsys.readouterr().err

    @pytest.mark.parametrize("reason", ["there is no such file", "cut off half-way"])
    def test_nothing_half_done_is_left(
        self, reason: str, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def cut_off(url: str, path: Path) -> None:
            path.write_text("half of it")
            raise ConnectionResetError("cut off half-way")

        if reason == "cut off half-way":
            monkeypatch.setattr(download.urllib.request, "urlretrieve", cut_off)
        with pytest.raises(UserError, match=r"ids-sst-train\.csv: not reachable .*; check the network, or copy"):
            fetch(tmp_path / "data", ["sst"])
        assert list((tmp_path / "data").iterdir()) == []


class TestGlue:
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
    def test_round_trip(self, name: str, row: dict, labels: list[str] | None, expected: tuple, tmp_path: Path) -> None:
        file = tmp_path / "rows"
        file.write_text(glue_text(TASKS[name], [row, row], labels=labels, labelled=True))
        examples = list(read_rows(file, TASKS[name], labelled=True, max_characters=1000))
        assert len(examples) == 2
        assert isinstance(examples[0], Example)
        assert (examples[0].text_a, examples[0].text_b, pytest.approx(examples[0].label)) == expected

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
        assert hub_split(TASKS[name], split) == expected
