"""A batch is padded to its longest example, and says which tokens are real."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pal_dist.data.batch import Batch, batch_of_texts, pad_to_batch
from pal_dist.data.readers import Example, read_rows
from pal_dist.data.tokenizer import load_tokenizer
from pal_dist.tasks.registry import TASKS
from tests.support.tiny_run import sst_corpus


def batch_of(*lengths: int, multiple: int = 1) -> Batch:
    """Examples of tokens 1, 2, 3, ...; the first text of each ends after two tokens."""
    return pad_to_batch(
        "sst",
        [np.arange(1, length + 1) for length in lengths],
        np.full(len(lengths), 2, dtype=np.int32),
        np.arange(len(lengths), dtype=np.float32),
        padding_id=9,
        multiple=multiple,
    )


def test_padding() -> None:
    batch = batch_of(2, 4)
    assert batch.input_ids_BL.tolist() == [[1, 2, 9, 9], [1, 2, 3, 4]]
    assert batch.token_type_ids_BL.tolist() == [[0, 0, 0, 0], [0, 0, 1, 1]]
    assert batch.mask_BL is not None
    assert batch.mask_BL.tolist() == [[True, True, False, False], [True] * 4]
    assert batch.labels_B.tolist() == [0, 1]
    assert (batch.useful_tokens, batch.tokens) == (6, 8)


def test_without_padding_there_is_no_mask() -> None:
    assert batch_of(3, 3).mask_BL is None
    assert batch_of(8, 8, multiple=8).mask_BL is None


@pytest.mark.parametrize(("multiple", "width"), [(1, 5), (4, 8), (8, 8)])
def test_width_is_rounded_up_to_what_the_device_wants(multiple: int, width: int) -> None:
    batch = batch_of(2, 5, multiple=multiple)
    assert batch.input_ids_BL.shape == (2, width)
    assert (batch.useful_tokens, batch.tokens) == (7, 2 * width)


def test_a_text_is_batched_as_a_file_is(tiny_bert: Path, small_data: Path, tmp_path: Path) -> None:
    file = small_data / "ids-sst-train.csv"
    rows = [
        row for row in read_rows(file, TASKS["sst"], labelled=True, max_characters=1000) if isinstance(row, Example)
    ]
    texts = [(row.text_a, None) for row in rows[:3]]
    batch = batch_of_texts("sst", texts, load_tokenizer(tiny_bert), max_length=48)
    stored = sst_corpus(file, tiny_bert, tmp_path).batch("sst", np.arange(3))
    assert batch.input_ids_BL.tolist() == stored.input_ids_BL.tolist()
    assert batch.useful_tokens == stored.useful_tokens
    assert np.isnan(batch.labels_B.numpy()).all()


def test_a_pair_is_cut_to_the_length_and_the_tokenizer_is_as_before(tiny_bert: Path) -> None:
    tokenizer = load_tokenizer(tiny_bert)
    batch = batch_of_texts("sts", [("a b c d e", "f g h i j"), ("a", "b")], tokenizer, max_length=9)
    assert batch.input_ids_BL.shape == (2, 9)
    assert batch.token_type_ids_BL.tolist() == [[0] * 5 + [1] * 4, [0, 0, 0, 1, 1, 0, 0, 0, 0]]
    assert len(tokenizer.encode("a b c d e", "f g h i j").ids) == 13
