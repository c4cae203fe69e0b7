"""Fixtures: a tiny BERT that nobody has to download, tiny files, the shared real data where it is."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path

import pytest
import torch

from pal_dist.data.synthetic import built_in_corpus
from tests.support.tiny_run import make_tiny_run

WORDS = 400

LONGEST = (
    "cluster/test_slurm",
    "ranks/test_strategies",
    "ranks/test_resume",
    "ranks/test_gradient_surgery",
    "ranks/test_adapters",
    "ranks/test_oom_guard",
    "cluster/test_launch",
    "ranks/test_closed_form",
)
"""Files of a minute and a half or more (26 November 2026, `--durations 0`), longest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first: processes without work steal from the end of another's queue, so the long ones must not be
    there. A file's tests stay together, for what they share."""
    order = {f"tests/{name}.py": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.nodeid.split("::")[0], len(order)))


@pytest.fixture(autouse=True)
def _deterministic() -> None:
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real data, golden vectors: not part of the project, so tests that need them skip without them."""
    folder = os.environ.get("PAL_DIST_SHARED")
    if not folder or not Path(folder).is_dir():
        pytest.skip("set PAL_DIST_SHARED to the folder with data/ and golden/ (real data is not part of the project)")
    return Path(folder).resolve()


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def corpus_dir(cache_dir: Path) -> Path:
    """The built-in synthetic corpus."""
    return built_in_corpus(cache_dir)


@pytest.fixture(scope="session")
def minilm() -> Path:
    from pal_dist.models.pretrained import find_model

    return find_model("minilm")


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory, corpus_dir: Path) -> Path:
    """A BERT folder: 2 layers of 24, vocabulary of the synthetic corpus's words, random weights by Transformers."""
    from transformers import BertConfig, BertModel

    text = " ".join(path.read_text() for path in sorted(corpus_dir.glob("*-dev.csv")))
    seen = sorted({word for word in text.split() if word.isalpha()})[:WORDS]
    letters = [piece for letter in "abcdefghijklmnopqrstuvwxyz" for piece in (letter, f"##{letter}")]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"0123456789.,?!'", *letters, *seen]
    folder = tmp_path_factory.mktemp("tiny_bert")
    torch.manual_seed(7)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    BertModel(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys(vocabulary)) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))
    return folder


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory, corpus_dir: Path) -> Path:
    """The first rows of the synthetic corpus, sizes chosen so that every task ends its pass with a partial step."""
    folder = tmp_path_factory.mktemp("small_data")
    for path in corpus_dir.glob("*.csv"):
        rows = {"ids-sst": 43, "quora": 61, "sts": 29}[path.name.rsplit("-", 1)[0]] if "train" in path.name else 24
        (folder / path.name).write_text("\n".join(path.read_text().splitlines()[: rows + 1]) + "\n")
    return folder


@pytest.fixture
def tiny_run(tiny_bert: Path, small_data: Path, cache_dir: Path, tmp_path: Path):
    return partial(make_tiny_run, tiny_bert, small_data, cache_dir, tmp_path)
