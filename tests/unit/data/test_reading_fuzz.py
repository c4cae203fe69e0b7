"""Files damaged at random: rows and errors, nothing else. The seed is fixed, so what fails fails again."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from pal_dist.core.errors import UserError
from pal_dist.data.token_cache import load_corpus
from pal_dist.data.tokenizer import load_tokenizer
from pal_dist.tasks.objectives import Binary, Classes, Objective, Score
from pal_dist.tasks.registry import Task

FILES = 300

TEXTS = (
    "good film",
    "fine, really",
    "电影 🎬",
    'she said "no"',
    "a;b|c",
    "1.5",
    "two\nlines",
    "tab\there",
    "\x1b[31mred",
)
VALUES = (*TEXTS, "", " ", None, 7, -1.5, True, [1], {"a": []}, "\ud83d", float("nan"), float("inf"))
INSERTS = (
    *(b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b'"', b"\n", b"\r", b"\t", b";", b"|", b",", b"{", b"[", b"}", b"]"),
    *(b"\\ud83d", b"sep=;\n", b"\x1b]0;x\x07", b"\xe9", b"\x1f\x8b", b"[" * 20_000, b"9" * 6000, b"\x1a", b"\xc2\x85"),
)
OBJECTIVES: tuple[Objective, ...] = (Binary(), Binary(("no", "yes")), Classes(3), Score(0, 5))
ENCODINGS = (*["utf-8"] * 12, "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252")


def rows_of(random: Random) -> list[dict[str, object]]:
    values = [VALUES if random.random() < 0.2 else TEXTS for _ in range(random.randrange(12))]
    return [
        {
            "id": random.choice(choices),
            "text": random.choice(choices),
            "label": random.choice((0, 1, 1, 0, 1, "yes", "no", 9, True)),
        }
        for choices in values
    ]


def as_table(rows: list[dict[str, object]], random: Random) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=random.choice(",,\t\t;|"), quoting=random.choice((0, 0, 1)))
    head = ["id", "text", "label"]
    writer.writerow(random.choice(([*head, "label"], [*head, ""], head[:2], []) if random.random() < 0.2 else (head,)))
    for row in rows:
        writer.writerow(row.values())
    return buffer.getvalue()


def as_json(rows: list[dict[str, object]], random: Random) -> str:
    lines = [json.dumps(row) for row in rows]
    return random.choice(
        (*["\n".join(lines)] * 3, "\r\n".join(lines), json.dumps(rows, indent=1), "\n\n" + "\n".join(lines))
    )


def mutated(content: bytes, random: Random) -> bytes:
    for _ in range(random.choice((0, 1, 1, 1, 4))):
        place = random.randrange(len(content) + 1)
        other = random.randrange(len(content) + 1)
        how = random.randrange(4)
        if how == 0:
            content = content[:place] + random.choice(INSERTS) + content[place:]
        elif how == 1:
            content = content[: min(place, other)] + content[max(place, other) :]
        elif how == 2:
            content = content[:place] + bytes([random.randrange(256)]) + content[place + 1 :]
        else:
            content = content[:place] + content[min(place, other) : max(place, other)][:200] + content[place:]
    return content


def damaged_file(random: Random) -> bytes:
    rows = rows_of(random)
    text = as_table(rows, random) if random.random() < 0.6 else as_json(rows, random)
    content = mutated(text.encode(random.choice(ENCODINGS), errors="replace"), random)
    return mutated(gzip.compress(content, mtime=0), random) if random.random() < 0.1 else content


def test_damaged_files_give_rows_or_errors(tiny_bert: Path, tmp_path: Path) -> None:
    """As far as the tokens on disk; every message can be shown as it is."""
    random, tokenizer, outcomes = Random(20), load_tokenizer(tiny_bert), Counter[str]()
    task = Task("mine", {"train": "rows"}, text_a="text", label="label", objective=Binary(), metric="accuracy", id="id")
    for number in range(FILES):
        content = damaged_file(random)
        (tmp_path / "rows").write_bytes(content)
        asked = replace(task, objective=random.choice(OBJECTIVES), quoting=random.random() < 0.8)
        if random.random() < 0.2:
            asked = replace(asked, text_a=1, label=2, id=random.choice((None, 0)))
        try:
            corpus = load_corpus(
                asked,
                "train",
                data_dir=tmp_path,
                cache_dir=tmp_path / "cache",
                tokenizer=tokenizer,
                max_length=32,
                max_characters=1000,
                bad_rows=random.choice(("skip", "skip", "skip", "damaged", "stop")),
                labelled=random.random() < 0.8,
                progress=False,
            )
            said = [*corpus.report.lines(), *corpus.report.notes(), *(corpus.id(row) for row in range(len(corpus)))]
            outcomes["read"] += 1
        except UserError as error:
            said = [str(error)]
            outcomes["refused"] += 1
            assert said[0].isprintable(), f"file {number}: {content[:200]!r}: {said[0]!r}"
        except Exception as error:
            pytest.fail(f"file {number}: {content[:500]!r}: {error!r}")
        for line in said:
            line.encode("utf-8")
    assert min(outcomes.values()) > FILES // 10, f"both are met: {outcomes}"
