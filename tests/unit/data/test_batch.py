"""A packed batch: rows one behind the other, task after task, and where each stands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from pal_dist.data.batch import Batch, TextRows, batch_of_texts, pack_batch
from pal_dist.data.readers import Example, read_rows
from pal_dist.data.tokenizer import load_tokenizer
from pal_dist.tasks.registry import TASKS
from tests.support.tiny_run import sst_corpus


def rows_of(*lengths: int, first: int = 1, features: np.ndarray | None = None) -> TextRows:
    """Rows of tokens `first`, `first` + 1, ...; the first text of each ends after two tokens."""
    tokens = [np.arange(first, first + length) for length in lengths] if features is None else []
    return TextRows(
        np.concatenate([np.zeros(0, dtype=np.uint16), *tokens]),
        np.array(lengths, dtype=np.int32),
        np.full(len(lengths), 2, dtype=np.int32),
        np.arange(len(lengths), dtype=np.float32) + 0.5,
        features,
    )


def described(batch: Batch) -> dict[str, object]:
    tensors = {name: value.tolist() for name, value in batch._asdict().items() if isinstance(value, torch.Tensor)}
    tensors.pop("buffer")
    return tensors | {"of segments": [starts.tolist() for starts in batch.segment_row_starts]}


def test_rows_stand_one_behind_the_other() -> None:
    batch = pack_batch([("sst", rows_of(2, 3)), ("sts", rows_of(4, first=7))])
    assert described(batch) == {
        "input_ids_T": [1, 2, 1, 2, 3, 7, 8, 9, 10],
        "token_type_ids_T": [0, 0, 0, 0, 1, 0, 0, 1, 1],
        "positions_T": [0, 1, 0, 1, 2, 0, 1, 2, 3],
        "row_starts": [0, 2, 5, 9],
        "of segments": [[0, 2, 5], [0, 4]],
        "labels_R": [0.5, 1.5, 0.5],
        "factors_S": [1.0, 1.0],
        "examples_S": [2.0, 1.0],
    }
    assert [(part.task, part.rows, part.tokens) for part in batch.segments] == [
        ("sst", slice(0, 2), slice(0, 5)),
        ("sts", slice(2, 3), slice(5, 9)),
    ]
    assert (batch.tokens, batch.lengths.tolist()) == (9, [2, 3, 4])


def test_a_task_may_have_no_row() -> None:
    batch = pack_batch([("sst", rows_of()), ("sts", rows_of(2)), ("para", rows_of())])
    assert described(batch)["of segments"] == [[0], [0, 2], [0]]
    assert [part.row_count for part in batch.segments] == [0, 1, 0]
    assert batch.row_starts.tolist() == [0, 2]


def test_nothing_at_all_is_a_batch_too() -> None:
    batch = pack_batch([("sst", rows_of())])
    assert (batch.tokens, batch.input_ids_T.tolist(), batch.row_starts.tolist()) == (0, [], [0])


def test_one_buffer_holds_it_all() -> None:
    """So that one copy brings it to a device."""
    batch = pack_batch([("sst", rows_of(2, 3)), ("sts", rows_of(4))])
    assert batch.buffer is not None
    memory = batch.buffer.untyped_storage().data_ptr()
    tensors = [value for value in batch if isinstance(value, torch.Tensor)]
    assert {tensor.untyped_storage().data_ptr() for tensor in [*tensors, *batch.segment_row_starts]} == {memory}
    assert batch.to("cpu") is batch
    elsewhere = batch.to("meta")
    assert {value.device.type for value in elsewhere if isinstance(value, torch.Tensor)} == {"meta"}
    assert elsewhere.labels_R.dtype == torch.float32


def test_features_stand_for_texts() -> None:
    features = np.arange(6, dtype=np.float32).reshape(2, 3)
    batch = pack_batch([("sst", rows_of(5, 9, features=features)), ("sts", rows_of(4, features=features[:1]))])
    assert batch.pooled_RD is not None
    assert batch.pooled_RD.tolist() == [[0, 1, 2], [3, 4, 5], [0, 1, 2]]
    assert (batch.tokens, batch.input_ids_T.numel()) == (18, 0)
    assert batch.labels_R.tolist() == [0.5, 1.5, 0.5]


def test_a_text_is_packed_as_a_file_is(tiny_bert: Path, small_data: Path, tmp_path: Path) -> None:
    file = small_data / "ids-sst-train.csv"
    rows = [
        row for row in read_rows(file, TASKS["sst"], labelled=True, max_characters=1000) if isinstance(row, Example)
    ]
    texts = [(row.text_a, None) for row in rows[:3]]
    batch = batch_of_texts("sst", texts, load_tokenizer(tiny_bert), max_length=48)
    stored = pack_batch([("sst", sst_corpus(file, tiny_bert, tmp_path).rows(np.arange(3)))])
    assert described(batch) | {"labels_R": None} == described(stored) | {"labels_R": None}
    assert np.isnan(batch.labels_R.numpy()).all()


def test_a_pair_is_cut_to_the_length_and_the_tokenizer_is_as_before(tiny_bert: Path) -> None:
    tokenizer = load_tokenizer(tiny_bert)
    batch = batch_of_texts("sts", [("a b c d e", "f g h i j"), ("a", "b")], tokenizer, max_length=9)
    assert batch.lengths.tolist() == [9, 5]
    assert batch.token_type_ids_T.tolist() == [0] * 5 + [1] * 4 + [0, 0, 0, 1, 1]
    assert len(tokenizer.encode("a b c d e", "f g h i j").ids) == 13
