"""Rows -> word pieces on disk, once.

A corpus is kept as flat binary files that are memory-mapped, so it may be larger than memory, a second start reads it
at once, and all processes of a machine share its pages. Its folder's name is a hash of the file's content, of what is
read from it and of the tokenizer: a changed file is a new corpus, never a stale one.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from tqdm import tqdm

from pal_dist.core.atomic_io import atomic_folder, explain_full_disk, write_json
from pal_dist.core.console import say
from pal_dist.core.errors import UserError
from pal_dist.data.batch import TextRows
from pal_dist.data.readers import BadRow, Example, read_rows
from pal_dist.tasks.registry import Task, task_to_dict

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CACHE_FORMAT = 1
"""Raised when the files below change their meaning; older caches are then rebuilt."""

ROWS_PER_CHUNK = 2048
"""Rows tokenised at a time: enough to keep all cores busy, little enough to hold in memory."""

MOST_NAMED_BAD_ROWS = 100
"""Bad rows whose line and reason are kept; all are counted."""

ARRAY_FILES = ("tokens", "starts", "first_lengths", "labels", "ids", "id_starts")
"""Files of a corpus: token ids one row behind the other and where each begins; tokens up to the end of the first text;
labels; the rows' own names, likewise with their beginnings."""

META_FILE = "meta.json"
"""The width of a token id, and the `ReadingReport`."""


@dataclass(frozen=True)
class ReadingReport:
    """What reading a file came to; written beside the corpus and said at every start."""

    file: str
    examples: int
    bad_rows: int
    named_bad_rows: tuple[tuple[int, str], ...]
    """(line, reason) of the first MOST_NAMED_BAD_ROWS."""
    truncated: int
    """Examples longer than max_length, cut to it."""

    def lines(self) -> Iterator[str]:
        for line, reason in self.named_bad_rows:
            yield f"{self.file}, line {line}: skipped: {reason}"
        if self.bad_rows > len(self.named_bad_rows):
            yield f"{self.file}: {self.bad_rows - len(self.named_bad_rows)} more rows were skipped"


class Corpus:
    """The examples of one split of one task, memory-mapped."""

    def __init__(self, folder: Path, file: Path):
        self.folder, self.key = folder, folder.name  # task, split and hash of everything that made this corpus
        meta = json.loads((folder / META_FILE).read_text(encoding="utf-8"))
        report = meta["report"]
        bad_rows = tuple(map(tuple, report["named_bad_rows"]))
        self.report = ReadingReport(**{**report, "file": str(file), "named_bad_rows": bad_rows})
        self.tokens = _memory_map(folder / "tokens.bin", meta["token_dtype"])
        self.starts = _memory_map(folder / "starts.bin", "int64")
        self.first_lengths = _memory_map(folder / "first_lengths.bin", "int32")
        self.labels = _memory_map(folder / "labels.bin", "float32")
        self.lengths: NDArray[np.int32] = np.diff(self.starts).astype(np.int32)
        self._ids = _memory_map(folder / "ids.bin", "uint8")
        self._id_starts = _memory_map(folder / "id_starts.bin", "int64")

    def __len__(self) -> int:
        return len(self.lengths)

    def id(self, row: int) -> str:
        """The row's own name, or its number where the file has none."""
        name = bytes(self._ids[self._id_starts[row] : self._id_starts[row + 1]]).decode("utf-8")
        return name or str(row)

    def rows(self, rows: NDArray[np.int64]) -> TextRows:
        """These rows, gathered."""
        lengths, starts = self.lengths[rows], self.starts[rows]
        before = np.cumsum(lengths, dtype=np.int64) - lengths
        places = np.arange(int(lengths.sum())) + np.repeat(starts - before, lengths)
        return TextRows(self.tokens[places], lengths, self.first_lengths[rows], self.labels[rows])


def _memory_map(path: Path, dtype: str) -> NDArray[Any]:
    if path.stat().st_size == 0:  # numpy cannot map an empty file
        return np.empty(0, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r").view(np.ndarray)


def load_corpus(
    task: Task,
    split: str,
    *,
    data_dir: Path,
    cache_dir: Path,
    tokenizer: Tokenizer,
    max_length: int,
    max_characters: int,
    bad_rows: str,
    labelled: bool = True,
    progress: bool = True,
) -> Corpus:
    """The tokenised corpus of a split, from the cache or built now. Safe when several processes ask at once.

    Raises UserError for every fault of the file that stops it, and for a task without such a split.
    """
    name = task.file(split)
    if name is None:
        raise UserError(f"task `{task.name}` has no `{split}` file; it has {', '.join(task.files)}")
    path = data_dir / name
    settings = {"max_length": max_length, "max_characters": max_characters, "bad_rows": bad_rows, "labelled": labelled}
    folder = cache_dir / f"{task.name}-{split}-{_corpus_hash(path, task, tokenizer, settings)}"
    if not folder.is_dir():
        with explain_full_disk(cache_dir):
            cache_dir.mkdir(parents=True, exist_ok=True)
        with explain_full_disk(cache_dir), FileLock(f"{folder}.lock"):
            if not folder.is_dir():
                rows = read_rows(path, task, labelled=labelled, max_characters=max_characters)
                title = f"tokenising {path.name}" if progress else None
                _build(folder, _UsableRows(rows, path, bad_rows), tokenizer, max_length, title=title)
    return Corpus(folder, path)


def _corpus_hash(path: Path, task: Task, tokenizer: Tokenizer, settings: dict[str, Any]) -> str:
    """Of everything that makes a corpus."""
    recipe = {
        **settings,
        "format": CACHE_FORMAT,
        "file": path.name,
        "task": task_to_dict(task),
        "tokenizer": hashlib.sha256(tokenizer.to_str().encode()).hexdigest(),
    }
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode())
    if path.is_file():  # a missing file is named by the reader
        with open(path, "rb") as file:
            while block := file.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()[:24]


class _UsableRows:
    """The usable examples among rows; counts the others or stops at one, as the policy says."""

    def __init__(self, rows: Iterable[Example | BadRow], path: Path, policy: str):
        self.rows, self.path, self.policy = rows, path, policy
        self.named_bad_rows: list[tuple[int, str]] = []
        self.bad_rows = 0

    def __iter__(self) -> Iterator[Example]:
        for row in self.rows:
            if isinstance(row, Example):
                yield row
                continue
            if self.policy == "stop" or (self.policy == "damaged" and row.contradiction):
                raise UserError(
                    f"{self.path}, line {row.line}: {row.reason}. Mend the row, or pass --bad_rows skip to leave such "
                    f"rows out (they are named and counted)"
                )
            self.bad_rows += 1
            if len(self.named_bad_rows) < MOST_NAMED_BAD_ROWS:
                self.named_bad_rows.append((row.line, row.reason))


def _build(folder: Path, examples: _UsableRows, tokenizer: Tokenizer, max_length: int, *, title: str | None) -> None:
    """Write the corpus; it takes its place once it is whole and on disk."""
    tokenizer.enable_truncation(max_length, strategy="longest_first")
    dtype = "uint16" if tokenizer.get_vocab_size() <= 1 << 16 else "int32"
    begun = time.perf_counter()
    try:
        with atomic_folder(folder) as draft:
            with ExitStack() as stack:
                files: dict[str, BinaryIO] = {
                    name: stack.enter_context(open(draft / f"{name}.bin", "wb")) for name in ARRAY_FILES
                }
                count, truncated = _write_arrays(files, examples, tokenizer, dtype, title)
            if not count:
                raise UserError(
                    f"{examples.path}: no usable row among {examples.bad_rows}; the first: "
                    f"{examples.named_bad_rows[:1]}"
                )
            report = ReadingReport(
                str(examples.path), count, examples.bad_rows, tuple(examples.named_bad_rows), truncated
            )
            write_json(draft / META_FILE, {"token_dtype": dtype, "report": asdict(report)})
    finally:
        tokenizer.no_truncation()
    if title:
        say(f"{title}: {count:,} rows in {time.perf_counter() - begun:.1f} s")


def _write_arrays(
    files: dict[str, BinaryIO], examples: Iterable[Example], tokenizer: Tokenizer, dtype: str, title: str | None
) -> tuple[int, int]:
    """Tokenise chunk by chunk and append; returns (examples, truncated examples)."""
    count = truncated = token_end = id_end = 0
    files["starts"].write(np.int64(0).tobytes())
    files["id_starts"].write(np.int64(0).tobytes())
    stream = iter(examples)
    with tqdm(desc=title, unit=" rows", disable=None if title else True, leave=False, delay=1) as bar:
        while chunk := list(islice(stream, ROWS_PER_CHUNK)):
            texts = [row.text_a if row.text_b is None else (row.text_a, row.text_b) for row in chunk]
            encodings = tokenizer.encode_batch(texts)
            lengths = np.array([len(encoding.ids) for encoding in encodings])
            ids = [row.id.encode("utf-8") for row in chunk]
            id_lengths = [len(name) for name in ids]
            first_lengths = np.array([encoding.type_ids.count(0) for encoding in encodings], dtype=np.int32)
            labels = np.array([np.nan if row.label is None else row.label for row in chunk], dtype=np.float32)
            files["tokens"].write(np.concatenate([encoding.ids for encoding in encodings]).astype(dtype).tobytes())
            files["starts"].write((token_end + np.cumsum(lengths)).astype(np.int64).tobytes())
            files["first_lengths"].write(first_lengths.tobytes())
            files["labels"].write(labels.tobytes())
            files["ids"].write(b"".join(ids))
            files["id_starts"].write((id_end + np.cumsum(id_lengths)).astype(np.int64).tobytes())
            token_end, id_end = token_end + int(lengths.sum()), id_end + sum(id_lengths)
            count += len(chunk)
            truncated += sum(bool(encoding.overflowing) for encoding in encodings)
            bar.update(len(chunk))
    return count, truncated
