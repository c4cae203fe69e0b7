"""Tokens once: those of Transformers, read again by the next start, never a stale or a half one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from pal_dist.core.atomic_io import draft_of
from pal_dist.core.errors import UserError
from pal_dist.data.batch import pack_batch
from pal_dist.data.readers import Example, read_rows
from pal_dist.data.token_cache import load_corpus
from pal_dist.data.tokenizer import load_tokenizer
from pal_dist.tasks.registry import TASKS
from tests.support.padding import padded_inputs
from tests.support.tiny_run import sst_corpus

PARA = TASKS["para"]


class TestCorpus:
    def test_tokens_are_those_of_transformers(self, minilm: Path, shared: Path, tmp_path: Path) -> None:
        corpus = load_corpus(
            PARA,
            "dev",
            data_dir=shared / "data",
            cache_dir=tmp_path,
            tokenizer=load_tokenizer(minilm),
            max_length=40,
            max_characters=20_000,
            bad_rows="damaged",
            progress=False,
        )
        reference = AutoTokenizer.from_pretrained(minilm)
        rows = [
            row
            for row in read_rows(shared / "data" / "quora-dev.csv", PARA, labelled=True, max_characters=20_000)
            if isinstance(row, Example)
        ]
        assert len(corpus) == len(rows) == 1998
        assert corpus.report.bad_rows == 2
        chosen = np.array([0, 5, 77, 1997, int(corpus.lengths.argmax())])
        batch = pack_batch([("para", corpus.rows(chosen))])
        expected = reference(
            [rows[i].text_a for i in chosen],
            [rows[i].text_b for i in chosen],
            truncation=True,
            max_length=40,
            padding=True,
            return_tensors="pt",
        )
        for name, values in padded_inputs(batch).items():
            assert values.tolist() == expected[name].tolist(), name
        assert batch.labels_R.tolist() == [rows[i].label for i in chosen]
        assert [corpus.id(i) for i in chosen] == [rows[i].id for i in chosen]
        long = [len(reference(row.text_a, row.text_b)["input_ids"]) > 40 for row in rows]
        assert corpus.report.truncated == sum(long)

    def test_second_start_reads_what_the_first_wrote(self, tiny_bert: Path, small_data: Path, tmp_path: Path) -> None:
        file = small_data / "ids-sst-train.csv"
        first = sst_corpus(file, tiny_bert, tmp_path)
        folders = sorted(path.name for path in tmp_path.iterdir() if path.is_dir())
        stamp = (tmp_path / folders[0]).stat().st_mtime_ns
        second = sst_corpus(file, tiny_bert, tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == folders
        assert (tmp_path / folders[0]).stat().st_mtime_ns == stamp
        np.testing.assert_array_equal(first.tokens, second.tokens)
        sst_corpus(file, tiny_bert, tmp_path, max_length=20)
        assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 2

    def test_changed_content_is_a_new_corpus(self, tiny_bert: Path, tmp_path: Path) -> None:
        file = tmp_path / "a.csv"
        for label in (1, 2):
            file.write_text(f"\tid\tsentence\tsentiment\n0\ta\tfine\t{label}\n")
            assert sst_corpus(file, tiny_bert, tmp_path).labels.tolist() == [label]

    def test_a_draft_of_a_killed_process_is_never_read(self, tiny_bert: Path, small_data: Path, tmp_path: Path) -> None:
        file = small_data / "ids-sst-train.csv"
        sst_corpus(file, tiny_bert, tmp_path)
        (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
        folder.rename(draft_of(folder, "killed"))
        assert len(sst_corpus(file, tiny_bert, tmp_path)) == 43

    @pytest.mark.parametrize(
        ("policy", "row", "stops"),
        [
            ("damaged", "0\ta\t\t1", False),
            ("damaged", "0\ta\tx\t9", True),
            ("skip", "0\ta\tx\t9", False),
            ("stop", "0\ta\t\t1", True),
        ],
    )
    def test_policies(self, policy: str, row: str, stops: bool, tiny_bert: Path, tmp_path: Path) -> None:
        file = tmp_path / "a.csv"
        file.write_text(f"\tid\tsentence\tsentiment\n0\ta\tfine\t1\n{row}\n")
        if stops:
            with pytest.raises(UserError, match=r"a\.csv, line 3: .*--bad_rows skip"):
                sst_corpus(file, tiny_bert, tmp_path, bad_rows=policy)
            assert [path for path in tmp_path.iterdir() if path.is_dir()] == []
        else:
            corpus = sst_corpus(file, tiny_bert, tmp_path, bad_rows=policy)
            assert (len(corpus), corpus.report.bad_rows) == (1, 1)
            assert "line 3: skipped" in next(corpus.report.lines())

    def test_nothing_usable(self, tiny_bert: Path, tmp_path: Path) -> None:
        file = tmp_path / "a.csv"
        file.write_text("\tid\tsentence\tsentiment\n0\ta\t\t1\n")
        with pytest.raises(UserError, match="no usable row among 1"):
            sst_corpus(file, tiny_bert, tmp_path)
