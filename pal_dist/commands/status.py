"""The verb `status`: how one run does, or a list of the runs in a folder."""

from __future__ import annotations

from pathlib import Path

from pal_dist.monitoring import run_files
from pal_dist.monitoring.status import runs_below, runs_table, status_of


def status(folder: Path, *, as_json: bool) -> str:
    """In words, or a line of JSON for each run. Raises UserError where there is neither a run nor a folder of runs."""
    if (folder / run_files.STATUS).is_file() or not folder.is_dir():
        run = status_of(folder)
        return run.json() if as_json else run.text()
    runs = runs_below(folder)
    return "\n".join(run.json() for run in runs) if as_json else runs_table(runs)
