"""The tokenizer of a model folder is that of Transformers, whichever file the folder has."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import BertTokenizer

from pal_dist.core.errors import UserError
from pal_dist.data.tokenizer import load_tokenizer

TEXT = "Café-goers' naïve 3.5% résumé; ÅNGSTRÖM?!"


def test_vocab_txt_gives_the_same_tokenizer(minilm: Path, tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text((minilm / "vocab.txt").read_text())
    expected = BertTokenizer.from_pretrained(minilm)(TEXT)["input_ids"]
    assert load_tokenizer(tmp_path).encode(TEXT).ids == expected
    assert load_tokenizer(minilm).encode(TEXT).ids == expected


def test_capitals_count_where_the_folder_says_so(tiny_bert: Path, tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text((tiny_bert / "vocab.txt").read_text())
    lower = load_tokenizer(tmp_path).encode("film").ids
    assert load_tokenizer(tmp_path).encode("FILM").ids == lower
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert load_tokenizer(tmp_path).encode("film").ids == lower
    assert load_tokenizer(tmp_path).encode("FILM").ids != lower


def test_a_folder_without_one_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tokenizer\.json or vocab\.txt, found neither"):
        load_tokenizer(tmp_path)
