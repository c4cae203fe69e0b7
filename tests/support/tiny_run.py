"""Runs of a second or two."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pal_dist.config.resolve import resolve
from pal_dist.config.schema import RunConfig
from pal_dist.data.token_cache import Corpus, load_corpus
from pal_dist.data.tokenizer import load_tokenizer
from pal_dist.tasks.registry import TASKS


def make_tiny_run(tiny_bert: Path, small_data: Path, cache_dir: Path, folder: Path, **flags: object) -> RunConfig:
    """A config of a run of a second or two; flags overrule."""
    values = {
        "data_dir": small_data,
        "model": tiny_bert,
        "cache_dir": cache_dir,
        "output_dir": folder / "run",
        "max_length": 48,
        "batch_size": 8,
        "adapter_hidden": 12,
        "adapter_heads": 2,
        "learning_rate": 1e-3,
        "max_steps": 6,
        "epochs": 9,
        "log_every": 2,
        "dropout": 0.0,
        "window_batches": 2,
    } | flags
    return resolve({name: str(value) if isinstance(value, Path) else value for name, value in values.items()})[0]


def sst_corpus(file: Path, folder: Path, cache: Path, **options: object) -> Corpus:
    """The file as a corpus of `sst`, tokenised into `cache`."""
    task = replace(TASKS["sst"], files={"train": file.name})
    values = {"max_length": 48, "max_characters": 1000, "bad_rows": "damaged", "progress": False} | options
    return load_corpus(task, "train", data_dir=file.parent, cache_dir=cache, tokenizer=load_tokenizer(folder), **values)
