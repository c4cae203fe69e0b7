"""The file that says what a run is doing."""

from __future__ import annotations

import os
from pathlib import Path

from pal_dist.monitoring.run_files import STATUS
from pal_dist.monitoring.status_file import StatusEntry, StatusFile, read_status


def test_entries_are_whole_or_old(tmp_path: Path) -> None:
    status_file = StatusFile(tmp_path, 0, 9, {})
    for step in range(5):
        status_file.write("training", step)
        assert isinstance(read_status(tmp_path), StatusEntry)
    assert not [path for path in tmp_path.iterdir() if path.name != STATUS]
    assert read_status(tmp_path) is not None
    assert status_file.entry.pid == os.getpid()
