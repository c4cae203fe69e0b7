"""The built-in corpus: the same text on every machine, readable to the last row, with every label in it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from pal_dist.data.readers import Example, read_rows
from pal_dist.data.synthetic import SIZES, built_in_corpus
from pal_dist.tasks.registry import TASKS

DIGEST = "cb7ac77c299e0f52f2b7fb2075d082496325513d8b6d92c051173d4db90a6a9f"
"""SHA-256 of its six files, one behind the other by name: recorded scores belong to this text."""


def test_the_same_text_on_every_machine(corpus_dir: Path) -> None:
    digest = hashlib.sha256()
    for path in sorted(corpus_dir.iterdir()):
        digest.update(path.read_bytes())
    assert digest.hexdigest() == DIGEST


def test_a_second_start_writes_nothing(corpus_dir: Path) -> None:
    stamp = corpus_dir.stat().st_mtime_ns
    assert built_in_corpus(corpus_dir.parent) == corpus_dir
    assert corpus_dir.stat().st_mtime_ns == stamp


@pytest.mark.parametrize(("place", "name"), enumerate(("sst", "para", "sts")))
def test_every_row_is_whole_and_every_label_occurs(place: int, name: str, corpus_dir: Path) -> None:
    task = TASKS[name]
    for split, sizes in SIZES.items():
        rows = list(read_rows(corpus_dir / task.files[split], task, labelled=True, max_characters=1000))
        examples = [row for row in rows if isinstance(row, Example)]
        assert len(rows) == len(examples) == sizes[place]
        labels = {row.label for row in examples}
        assert len(labels) == task.objective.class_count if task.objective.class_count else len(labels) > 5
