"""Rows of every format and dirt, tokens once, caches that several processes may build at once."""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer, BertTokenizer

from pal_dist.core.errors import UserError
from pal_dist.data.batch import batch_of_texts
from pal_dist.data.readers import BadRow, Example, read_rows
from pal_dist.data.token_cache import Corpus, load_corpus
from pal_dist.data.tokenizer import load_tokenizer
from pal_dist.tasks.registry import TASKS, Task, resolve_tasks, task_from_dict, task_to_dict

SST, PARA, STS, COLA = (TASKS[name] for name in ("sst", "para", "sts", "cola"))


def read(path: Path, task: Task, *, labelled: bool = True) -> list[Example | BadRow]:
    return list(read_rows(path, task, labelled=labelled, max_characters=1000))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "rows"


class TestFormats:
    def test_course_layout(self, file: Path) -> None:
        file.write_text('\tid\tsentence\tsentiment\n0\ta1\t A film . \t3\n7\tb2\t"says ""no"" twice"\t0\n')
        assert read(file, SST) == [
            Example(2, "a1", "A film .", None, 3.0),
            Example(3, "b2", 'says "no" twice', None, 0.0),
        ]

    def test_comma_separated_with_a_line_break_in_a_field(self, file: Path) -> None:
        file.write_text('id,sentence1,sentence2,is_duplicate\nx,"a, b","c\nd",1.0\ny,e,f,0.0\n')
        assert read(file, PARA) == [Example(2, "x", "a, b", "c\nd", 1.0), Example(4, "y", "e", "f", 0.0)]

    def test_json_lines(self, file: Path) -> None:
        rows = [{"id": 5, "sentence1": "a", "sentence2": "b", "similarity": 2.5}, {"sentence1": "a", "similarity": 1}]
        file.write_text("\n".join(map(json.dumps, rows)) + "\n\nnot json\n[1]\n")
        found = read(file, STS)
        assert found[0] == Example(1, "5", "a", "b", 2.5)
        assert [row.line for row in found] == [1, 2, 4, 5]
        assert all(isinstance(row, BadRow) for row in found[1:])
        assert "no field `sentence2`" in found[1].reason

    def test_glue_without_header_and_with_loose_quotes(self, file: Path) -> None:
        file.write_text('gj04\t1\t\tHe said "go.\ngj04\t0\t*\tThe "man left.\n')
        assert read(file, COLA) == [
            Example(1, "", 'He said "go.', None, 1.0),
            Example(2, "", 'The "man left.', None, 0.0),
        ]

    def test_test_split_without_labels(self, file: Path) -> None:
        file.write_text("0\t\tid\tsentence\n1\t0.0\tc9\t A rock \n")
        assert read(file, SST, labelled=False) == [Example(2, "c9", "A rock", None, None)]

    def test_byte_order_mark_and_windows_line_ends(self, file: Path) -> None:
        file.write_bytes("\ufeff\tid\tsentence\tsentiment\r\n0\ta\tfine\t2\r\n".encode())
        assert read(file, SST) == [Example(2, "a", "fine", None, 2.0)]


class TestDirt:
    HEAD = "\tid\tsentence\tsentiment\n"

    @pytest.mark.parametrize(
        ("row", "reason", "contradiction"),
        [
            ("0\ta\t\t1", "`sentence` is empty", False),
            ("0\ta\tx\t", "`sentiment` is empty", False),
            ("0\ta\tx", "expected 4 fields, found 3", False),
            ('0\ta\t"x\t1', "found 3", False),
            ("0\ta\tx\t5", "from 0 to 4, found '5'", True),
            ("0\ta\tx\tgood", "found 'good'", True),
            ("0\ta\t" + "x" * 1001 + "\t1", "1,001 characters", True),
        ],
    )
    def test_bad_rows(self, row: str, reason: str, contradiction: bool, file: Path) -> None:
        file.write_text(f"{self.HEAD}0\ta\tgood\t4\n{row}\n")
        good, bad = read(file, SST)
        assert isinstance(good, Example)
        assert isinstance(bad, BadRow)
        assert bad.line == 3
        assert reason in bad.reason
        assert bad.contradiction == contradiction

    @pytest.mark.parametrize(
        ("content", "says"),
        [
            (b"", "the file is empty"),
            (b"\tid\tsentence\tsentiment\n", "has a header and no rows"),
            (
                b"\tid\tsentense\tsentiment\n0\ta\tb\t1\n",
                r"line 1: expected a column `sentence`.*Did you mean `sentense`",
            ),
            (b"\tid\tsentence\tlabel\n0\ta\tb\t1\n", "line 1: expected a column `sentiment`"),
            (
                "\tid\tsentence\tsentiment\n0\ta\tok\t1\n0\tb\tcaf\xe9\t1\n".encode("latin-1"),
                "line 3: expected UTF-8, found",
            ),
        ],
    )
    def test_bad_files(self, content: bytes, says: str, file: Path) -> None:
        file.write_bytes(content)
        with pytest.raises(UserError, match=says):
            read(file, SST)

    def test_missing_file_names_the_nearest(self, tmp_path: Path) -> None:
        (tmp_path / "ids-sst-trian.csv").write_text("x")
        with pytest.raises(UserError, match=r"Did you mean .*ids-sst-trian\.csv"):
            read(tmp_path / "ids-sst-train.csv", SST)

    def test_real_files_have_just_the_known_dirt(self, shared: Path) -> None:
        bad = {}
        for name in ("sst", "cfimdb", "para", "sts", "cola"):
            task = TASKS[name]
            for split in ("train", "dev"):
                path = shared / "data" / task.files[split]
                rows = list(read_rows(path, task, labelled=True, max_characters=20_000))
                bad |= {(path.name, row.line): row.reason for row in rows if isinstance(row, BadRow)}
        assert bad == {
            ("quora-dev.csv", 248): "column `is_duplicate` is empty",
            ("quora-dev.csv", 1404): "column `sentence2` is empty",
        }


def corpus_of(file: Path, folder: Path, cache: Path, **options: object) -> Corpus:
    task = replace(SST, files={"train": file.name})
    values = {"max_length": 48, "max_characters": 1000, "bad_rows": "damaged", "progress": False} | options
    return load_corpus(task, "train", data_dir=file.parent, cache_dir=cache, tokenizer=load_tokenizer(folder), **values)


def build_for(arguments: tuple[Path, Path, Path]) -> tuple[str, int]:
    corpus = corpus_of(*arguments)
    return str(corpus.tokens[:].tolist()), len(corpus)


class TestCorpus:
    def test_tokens_are_those_of_transformers(self, minilm: Path, shared: Path, tmp_path: Path) -> None:
        corpus = load_corpus(
            PARA, "dev", data_dir=shared / "data", cache_dir=tmp_path, tokenizer=load_tokenizer(minilm), max_length=40,
            max_characters=20_000, bad_rows="damaged", progress=False,
        )  # fmt: skip
        reference = AutoTokenizer.from_pretrained(minilm)
        rows = [row for row in read_rows(shared / "data" / "quora-dev.csv", PARA, labelled=True, max_characters=20_000)
                if isinstance(row, Example)]  # fmt: skip
        assert len(corpus) == len(rows) == 1998
        assert corpus.report.bad_rows == 2
        picked = np.array([0, 5, 77, 1997, int(corpus.lengths.argmax())])
        batch = corpus.batch("para", picked)
        expected = reference([rows[i].text_a for i in picked], [rows[i].text_b for i in picked], truncation=True,
                             max_length=40, padding=True, return_tensors="pt")  # fmt: skip
        assert batch.input_ids_BL.tolist() == expected["input_ids"].tolist()
        assert batch.token_type_ids_BL.tolist() == expected["token_type_ids"].tolist()
        assert batch.mask_BL.long().tolist() == expected["attention_mask"].tolist()
        assert batch.labels_B.tolist() == [rows[i].label for i in picked]
        assert [corpus.id(i) for i in picked] == [rows[i].id for i in picked]
        long = [len(reference(row.text_a, row.text_b)["input_ids"]) > 40 for row in rows]
        assert corpus.report.truncated == sum(long)

    def test_vocab_txt_gives_the_same_tokenizer(self, minilm: Path, tmp_path: Path) -> None:
        (tmp_path / "vocab.txt").write_text((minilm / "vocab.txt").read_text())
        text = "Café-goers' naïve 3.5% résumé; ÅNGSTRÖM?!"
        expected = BertTokenizer.from_pretrained(minilm)(text)["input_ids"]
        assert load_tokenizer(tmp_path).encode(text).ids == expected
        with pytest.raises(UserError, match=r"tokenizer\.json or vocab\.txt"):
            load_tokenizer(tmp_path.parent)

    def test_second_start_reads_what_the_first_wrote(self, tiny_bert: Path, small_data: Path, tmp_path: Path) -> None:
        file = small_data / "ids-sst-train.csv"
        first = corpus_of(file, tiny_bert, tmp_path)
        folders = sorted(path.name for path in tmp_path.iterdir() if path.is_dir())
        stamp = (tmp_path / folders[0]).stat().st_mtime_ns
        second = corpus_of(file, tiny_bert, tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == folders
        assert (tmp_path / folders[0]).stat().st_mtime_ns == stamp
        np.testing.assert_array_equal(first.tokens, second.tokens)
        corpus_of(file, tiny_bert, tmp_path, max_length=20)
        assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 2

    def test_changed_content_is_a_new_corpus(self, tiny_bert: Path, tmp_path: Path) -> None:
        file = tmp_path / "a.csv"
        for label in (1, 2):
            file.write_text(f"\tid\tsentence\tsentiment\n0\ta\tfine\t{label}\n")
            assert corpus_of(file, tiny_bert, tmp_path).labels.tolist() == [label]

    def test_several_processes_at_once(self, tiny_bert: Path, corpus_dir: Path, tmp_path: Path) -> None:
        arguments = (corpus_dir / "ids-sst-train.csv", tiny_bert, tmp_path)
        with ProcessPoolExecutor(3, mp_context=get_context("forkserver")) as pool:
            found = set(pool.map(build_for, [arguments] * 3))
        assert len(found) == 1
        assert [path for path in tmp_path.iterdir() if "draft" in path.name] == []
        assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 1

    def test_a_draft_of_a_killed_process_is_never_read(self, tiny_bert: Path, small_data: Path, tmp_path: Path) -> None:
        file = small_data / "ids-sst-train.csv"
        corpus_of(file, tiny_bert, tmp_path)
        (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
        folder.rename(folder.with_name(folder.name + ".123.draft"))
        assert len(corpus_of(file, tiny_bert, tmp_path)) == 43

    @pytest.mark.parametrize(
        ("policy", "row", "stops"),
        [("damaged", "0\ta\t\t1", False), ("damaged", "0\ta\tx\t9", True), ("skip", "0\ta\tx\t9", False),
         ("stop", "0\ta\t\t1", True)],
    )  # fmt: skip
    def test_policies(self, policy: str, row: str, stops: bool, tiny_bert: Path, tmp_path: Path) -> None:
        file = tmp_path / "a.csv"
        file.write_text(f"\tid\tsentence\tsentiment\n0\ta\tfine\t1\n{row}\n")
        if stops:
            with pytest.raises(UserError, match=r"a\.csv, line 3: .*--bad_rows skip"):
                corpus_of(file, tiny_bert, tmp_path, bad_rows=policy)
            assert [path for path in tmp_path.iterdir() if path.is_dir()] == []
        else:
            corpus = corpus_of(file, tiny_bert, tmp_path, bad_rows=policy)
            assert (len(corpus), corpus.report.bad_rows) == (1, 1)
            assert "line 3: skipped" in next(corpus.report.lines())

    def test_nothing_usable(self, tiny_bert: Path, tmp_path: Path) -> None:
        file = tmp_path / "a.csv"
        file.write_text("\tid\tsentence\tsentiment\n0\ta\t\t1\n")
        with pytest.raises(UserError, match="no usable row among 1"):
            corpus_of(file, tiny_bert, tmp_path)

    def test_a_text_is_batched_as_a_file_is(self, tiny_bert: Path, small_data: Path, tmp_path: Path) -> None:
        tokenizer = load_tokenizer(tiny_bert)
        corpus = corpus_of(small_data / "ids-sst-train.csv", tiny_bert, tmp_path)
        rows = read(small_data / "ids-sst-train.csv", SST)[:3]
        batch = batch_of_texts("sst", [(row.text_a, None) for row in rows], tokenizer, max_length=48)
        stored = corpus.batch("sst", np.arange(3))
        assert batch.input_ids_BL.tolist() == stored.input_ids_BL.tolist()
        assert batch.useful_tokens == stored.useful_tokens


class TestTasks:
    def test_table_survives_being_written(self) -> None:
        for task in TASKS.values():
            assert task_from_dict(json.loads(json.dumps(task_to_dict(task))), where="here") == replace(
                task, extra_files=task.extra_files
            )

    def test_a_users_own_task(self, tmp_path: Path) -> None:
        (tmp_path / "toxic.yaml").write_text(
            "name: toxic\nfiles: {train: train.jsonl, dev: dev.jsonl}\ntext_a: comment\nlabel: verdict\n"
            "objective: {classes: [fine, rude, vile]}\nmetric: f1_macro\n"
        )
        (tmp_path / "train.jsonl").write_text('{"comment": "hi", "verdict": "rude"}\n')
        (task,) = resolve_tasks([str(tmp_path / "toxic.yaml")])
        assert task.files == {"train": str(tmp_path / "train.jsonl"), "dev": "dev.jsonl"}
        assert read(tmp_path / "train.jsonl", task) == [Example(1, "", "hi", None, 1.0)]

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            ({"metrik": "x"}, "unknown field `metrik`.*did you mean `metric`"),
            ({"label": None}, "missing field `label`"),
            ({"metric": "pearson"}, "`metric` must be one of accuracy"),
            ({"objective": "seven"}, "`objective` must be"),
            ({"name": "a.b"}, "`name` may have"),
            ({"files": {"training": "x"}}, "`files` maps train, dev, test"),
        ],
    )
    def test_wrong_yaml(self, change: dict[str, object], says: str, tmp_path: Path) -> None:
        entry = {"name": "t", "files": {"train": "x"}, "text_a": "a", "label": "b", "objective": "binary",
                 "metric": "accuracy"} | change  # fmt: skip
        with pytest.raises(UserError, match=says):
            task_from_dict({key: value for key, value in entry.items() if value is not None}, where="t.yaml")

    def test_names(self) -> None:
        with pytest.raises(UserError, match=r"unknown task `stss`\. Did you mean `sts`"):
            resolve_tasks(["stss"])
        with pytest.raises(UserError, match="names `sst` twice"):
            resolve_tasks(["sst", "sst"])
        with pytest.raises(UserError, match="no such task file"):
            resolve_tasks(["./nowhere.yaml"])


class TestFetchedGlue:
    """What `data fetch` writes is what the table of tasks reads."""

    @pytest.mark.parametrize(
        ("name", "row", "labels", "expected"),
        [
            ("cola", {"sentence": "A  b\tc.", "label": 1, "idx": 0}, None, ("A b c.", None, 1.0)),
            ("mrpc", {"sentence1": "a", "sentence2": 'b "c', "label": 0, "idx": 0}, None, ("a", 'b "c', 0.0)),
            ("qqp", {"question1": "a", "question2": "b", "label": 1, "idx": 0}, None, ("a", "b", 1.0)),
            ("stsb", {"sentence1": "a", "sentence2": "b", "label": 3.8, "idx": 0}, None, ("a", "b", 3.8)),
            ("mnli", {"premise": "a", "hypothesis": "b", "label": 1, "idx": 0},
             ["entailment", "neutral", "contradiction"], ("a", "b", 2.0)),
            ("qnli", {"question": "a", "sentence": "b", "label": 0, "idx": 0},
             ["entailment", "not_entailment"], ("a", "b", 1.0)),
            ("sst2", {"sentence": "a", "label": 0, "idx": 0}, None, ("a", None, 0.0)),
        ],
    )  # fmt: skip
    def test_round_trip(self, name: str, row: dict, labels: list[str] | None, expected: tuple, file: Path) -> None:
        from pal_dist.data.download import glue_text

        file.write_text(glue_text(TASKS[name], [row, row], labels=labels, labelled=True))
        found = read(file, TASKS[name])
        assert len(found) == 2
        assert (found[0].text_a, found[0].text_b, pytest.approx(found[0].label)) == expected

    @pytest.mark.parametrize(
        ("name", "split", "expected"),
        [
            ("mnli", "train", "train"),
            ("mnli", "dev", "validation_matched"),
            ("mnli", "dev_mismatched", "validation_mismatched"),
            ("mnli", "test_mismatched", "test_mismatched"),
            ("qnli", "dev", "validation"),
        ],
    )
    def test_splits_have_the_hub_s_names(self, name: str, split: str, expected: str) -> None:
        from pal_dist.data.download import hub_split

        assert hub_split(TASKS[name], split) == expected
