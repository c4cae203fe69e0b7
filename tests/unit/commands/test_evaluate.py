"""The verb `evaluate`, on a model that nobody has trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pal_dist.commands.evaluate import evaluate


def test_scores_as_a_table_and_as_json(
    model_folder: Path, small_data: Path, cache_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = {"tasks": "sst,sts", "data_dir": str(small_data)}
    text = evaluate(str(model_folder), flags, cache_dir=cache_dir)
    assert text is not None
    scores = json.loads(text)
    assert scores["dev"].keys() == {"sst", "sts"}
    shown = capsys.readouterr()
    assert shown.out == ""
    assert f"{scores['dev']['sst']['accuracy']:.4f}" in shown.err


def test_made_up_text_is_named(model_folder: Path, cache_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a data_dir the model is asked about the built-in corpus."""
    evaluate(str(model_folder), {"tasks": "sst"}, cache_dir=cache_dir)
    assert "SYNTHETIC text: these scores say nothing about real data" in capsys.readouterr().err
