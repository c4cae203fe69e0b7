"""What `profile` writes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pal_dist.commands.memory_check import _write
from pal_dist.memory.trace import Trace
from pal_dist.memory.tracker import CATEGORIES
from pal_dist.monitoring import run_files
from tests.support.hidden_libraries import hide_libraries


@pytest.mark.parametrize("installed", [True, False])
def test_the_picture_or_its_cure(
    installed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images: list[np.ndarray] = []
    report = SimpleNamespace(add_image=lambda name, image: images.append(image))
    config = SimpleNamespace(model=SimpleNamespace(model="encoder"))
    run: Any = SimpleNamespace(folder=tmp_path, config=config, report=report)
    sizes = dict.fromkeys(CATEGORIES, 2**20)
    traced = Trace(7, sizes, {}, 7, "forward", [], [("forward", sizes)] * 3)
    if not installed:
        hide_libraries(monkeypatch, "matplotlib")
    files = [path.name for path in _write(run, traced, traced, 7)]
    assert run_files.PROFILE in files
    assert (run_files.MEMORY_PICTURE in files) == (len(images) == 1) == installed
    assert ("pip install 'pal-dist[compare]'" in capsys.readouterr().err) != installed
