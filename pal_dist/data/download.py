"""Real data from the network, written in the official layouts that the table of tasks reads."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pal_dist.core.atomic_io import atomic_file, write_text
from pal_dist.core.console import say
from pal_dist.core.errors import UserError
from pal_dist.tasks.registry import Task, resolve_tasks

COURSE_URL = "https://raw.githubusercontent.com/gpoesia/minbert-default-final-project/main/data/"
"""Files of the CS224N default final project (SST, CFIMDB, Quora, STS), as the course hands them out."""

GLUE_ON_HUB = "nyu-mll/glue"
"""Name of the GLUE benchmark on the Hugging Face hub."""

OFFICIAL_COLUMNS = {
    "mrpc": {"sentence1": "#1 String", "sentence2": "#2 String", "label": "Quality"},
    "qqp": {"label": "is_duplicate"},
    "stsb": {"label": "score"},
    "mnli": {"premise": "sentence1", "hypothesis": "sentence2", "label": "gold_label"},
}
"""Columns of the hub's tables that GLUE's own files call otherwise."""

HUB_SPLITS = {"train": "train", "dev": "validation", "test": "test"}
"""What the hub calls our splits."""


def fetch(data_dir: Path, names: list[str]) -> list[Path]:
    """Download the tasks' files that are not there yet; returns the paths of those.

    Raises UserError where the network or a package fails; a file that was begun is not left there.
    """
    downloaded: list[Path] = []
    for task in resolve_tasks(names):
        files = {**task.files, **(task.extra_files or {})}
        for split, file in files.items():
            path = data_dir / file
            if path.is_file():
                say(f"{path}: already here")
                continue
            if file.startswith("glue/"):
                _fetch_glue(task, split, path)
            else:
                _download(COURSE_URL + file, path)
            downloaded.append(path)
    return downloaded


def _download(url: str, path: Path) -> None:
    try:
        with atomic_file(path) as draft:
            urllib.request.urlretrieve(url, draft)
    except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
        reason = getattr(error, "reason", error)
        raise UserError(f"{url}: not reachable ({reason}); check the network, or copy {path.name} there") from None


def _fetch_glue(task: Task, split: str, path: Path) -> None:
    try:
        from datasets import load_dataset
    except ImportError:
        raise UserError("GLUE comes through the `datasets` library: pip install 'pal-dist[fetch]'") from None
    try:
        rows = load_dataset(GLUE_ON_HUB, task.name, split=hub_split(task, split))
    except OSError as error:
        raise UserError(f"GLUE `{task.name}` is not reachable on the hub ({error}); check the network") from None
    labels = getattr(rows.features["label"], "names", None) if getattr(task.objective, "names", ()) else None
    write_text(path, glue_text(task, rows, labels=labels, labelled=not split.startswith("test")))


def hub_split(task: Task, split: str) -> str:
    """The hub's name of a split; one that also has a `mismatched` file is the `matched` half there."""
    stem, _, half = split.partition("_")
    if f"{split}_mismatched" in (task.extra_files or {}):
        half = "matched"
    return HUB_SPLITS[stem] + (f"_{half}" if half else "")


def glue_text(task: Task, rows: Iterable[Mapping[str, Any]], *, labels: list[str] | None, labelled: bool) -> str:
    """Rows of the hub's table as a GLUE file: tab-separated, official column names, quotes as they come.

    Args:
        labels: names of the label numbers, where the file writes names.
        labelled: False leaves the label column out (test files have none).
    """
    titles = {"sentence1": "sentence1", **OFFICIAL_COLUMNS.get(task.name, {})}
    lines: list[str] = []
    for row in rows:
        cells = {titles.get(key, key): str(value) for key, value in row.items() if key not in ("idx", "label")}
        cells = {key: " ".join(value.split()) for key, value in cells.items()}  # a tab or newline would end the field
        if labelled:
            cells[titles.get("label", "label")] = labels[row["label"]] if labels else f"{row['label']:g}"
        if task.text_a == 3:  # CoLA: source, label, mark, sentence and no header
            lines.append(f"\t{cells['label']}\t\t{cells['sentence']}")
            continue
        if not lines:
            lines.append("\t".join(cells))
        lines.append("\t".join(cells.values()))
    return "\n".join(lines) + "\n"
