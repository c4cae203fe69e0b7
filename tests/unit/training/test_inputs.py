"""A corpus is made of the settings that say so, and of no others."""

from __future__ import annotations

from pathlib import Path

import pytest

from pal_dist.config.resolve import names_where, resolve, settings
from pal_dist.training.inputs import find_inputs, read_corpora

OTHERS = {"max_length": "40", "max_characters": "9000", "bad_rows": "skip"}


@pytest.fixture
def hashes(tiny_bert: Path, small_data: Path, cache_dir: Path):
    def of(**flags: str) -> dict[str, str]:
        run = resolve({"model": str(tiny_bert), "data_dir": str(small_data), "max_length": "48", **flags})[0]
        return read_corpora(run, find_inputs(run, cache_dir)).hashes

    return of


def test_settings_that_make_a_corpus(hashes) -> None:
    assert OTHERS.keys() == set(names_where(makes_corpus=True))
    first = hashes()
    for name, value in OTHERS.items():
        other = hashes(**{name: value})
        assert [corpus for corpus in first if first[corpus] == other[corpus]] == [], name


def test_settings_that_do_not(hashes) -> None:
    flags = {"batch_size": "8", "seed": "3", "sampling": "sqrt", "tokens_per_micro_batch": "999", "adapter": "lora"}
    assert not any(settings()[name].use.makes_corpus for name in flags)
    assert hashes(**flags) == hashes()
