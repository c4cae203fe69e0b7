"""The verb `predict` for one text, and for a split, of a model that nobody has trained. (Scores: tests/ranks.)"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pal_dist.commands.predict import predict
from pal_dist.core.errors import UserError


def test_one_text(model_folder: Path, cache_dir: Path) -> None:
    flags = {"task": "sst", "text": "the film, is 'superb', 3 times"}
    record = json.loads(*predict(str(model_folder), flags, cache_dir=cache_dir))
    assert record["prediction"] == int(np.argmax(record["probabilities"]))
    assert sum(record["probabilities"]) == pytest.approx(1, abs=1e-3)


def test_a_pair(model_folder: Path, cache_dir: Path) -> None:
    pair = {"text": "a man .", "text_b": "a boy ."}
    score = json.loads(*predict(str(model_folder), {"task": "sts", **pair}, cache_dir=cache_dir))
    assert score.keys() == {"task", "prediction"}
    assert 0 <= score["prediction"] <= 5
    choice = json.loads(*predict(str(model_folder), {"task": "para", **pair}, cache_dir=cache_dir))
    assert choice["prediction"] == (choice["probability"] > 0.5)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"text": "a"}, "needs --task NAME"),
        ({"text_b": "a"}, "give the first as --text"),
        ({"task": "sts", "text": "a"}, "reads a pair: give --text_b"),
        ({"task": "sst", "text": "a", "text_b": "b"}, "reads one text: drop --text_b"),
        ({"task": "sst", "text": "  "}, "--text is empty"),
        ({"task": "sst", "text": "word " * 20_000}, "the text has 100,000 characters"),
        ({"task": "cola", "text": "a"}, "this model has no task `cola`"),
        ({"split": "nonsense"}, "none of the tasks has a `nonsense` file"),
    ],
)
def test_what_is_refused(flags: dict[str, str], says: str, model_folder: Path, cache_dir: Path) -> None:
    with pytest.raises(UserError, match=says):
        predict(str(model_folder), flags, cache_dir=cache_dir)


def test_files_of_a_split(model_folder: Path, small_data: Path, cache_dir: Path, tmp_path: Path) -> None:
    flags = {"tasks": "sst,sts", "split": "dev", "data_dir": str(small_data), "predictions_dir": str(tmp_path / "out")}
    paths = [Path(line) for line in predict(str(model_folder), flags, cache_dir=cache_dir)]
    assert [path.name for path in paths] == [
        f"{task}-dev{end}" for task in ("sst", "sts") for end in ("-output.csv", ".jsonl")
    ]
    for path in paths:
        assert len(path.read_text().splitlines()) == 24 + (path.suffix == ".csv")
