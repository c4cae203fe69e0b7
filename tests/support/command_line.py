"""Commands as a person types them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from pal_dist.cli import main


def mistake(capsys: pytest.CaptureFixture[str], words: Sequence[object]) -> str:
    """Run a command that must fail with exit code 2; returns its message, which must be no traceback."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    message = capsys.readouterr().err
    assert ended.value.code == 2, message
    assert "Traceback" not in message
    return message


def tiny_training(tiny_bert: Path, small_data: Path, folder: Path) -> list[object]:
    """A `train` command of one step that works, below the folder: its own copy of the data, its cache, its run."""
    shutil.copytree(small_data, folder / "data")
    places = ["--data_dir", folder / "data", "--cache_dir", folder / "cache", "--output_dir", folder / "run"]
    size = ["--max_length", 48, "--max_steps", 1, "--adapter_hidden", 12, "--adapter_heads", 2]
    return ["train", "--model", tiny_bert, *places, *size]
