"""Rows -> word pieces on disk, once -> `Batch`.

A corpus is kept as flat binary files that are memory-mapped, so it may be larger than memory, a second start reads it
at once, and all processes of a machine share its pages. Its folder's name is a hash of the file's content, of what is
read from it and of the tokenizer: a changed file is a new corpus, never a stale one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from tqdm import tqdm

from pal_dist.core.atomic_io import explain_full_disk
from pal_dist.core.console import say
from pal_dist.core.errors import UserError
from pal_dist.data.readers import BadRow, Example, read_rows
from pal_dist.tasks.registry import Task, task_to_dict

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor

FORMAT = 1
"""Raised when the files below change their meaning; older caches are then rebuilt."""

CHUNK = 2048
"""Rows tokenised at a time: enough to keep all cores busy, little enough to hold in memory."""

NAMED = 100
"""Bad rows that are kept by name; all are counted."""


class Batch(NamedTuple):
    """One micro-batch of one task. B examples, L tokens of the longest (rounded up where the device wants it)."""

    task: str
    input_ids_BL: Tensor
    """int64 (B, L), padded with the tokenizer's padding id."""
    token_type_ids_BL: Tensor
    """int64 (B, L): 0 for [CLS] a [SEP], 1 for b [SEP]."""
    mask_BL: Tensor | None
    """bool (B, L), True where there is a token; None where nothing is padded."""
    labels_B: Tensor
    """float32 (B,), NaN where the split has no labels."""
    useful_tokens: int
    """Tokens that are no padding; of cached features, those of the texts that they stand for."""
    pooled_BD: Tensor | None = None
    """What the heads read, (B, D), where it is known already: the tokens are then left out, (B, 0)."""

    @property
    def tokens(self) -> int:  # with padding; cached features have none
        return self.input_ids_BL.numel() if self.pooled_BD is None else self.useful_tokens


@dataclass(frozen=True)
class Report:
    """What reading a file found; written beside the corpus and told at every start."""

    file: str
    examples: int
    bad_rows: int
    named_bad_rows: tuple[tuple[int, str], ...]
    """(line, reason) of the first NAMED bad rows."""
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
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        entry = meta["report"]
        named = tuple(map(tuple, entry["named_bad_rows"]))
        self.report = Report(**{**entry, "file": str(file), "named_bad_rows": named})
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

    def batch(self, task: str, rows: NDArray[np.int64], *, padding_id: int = 0, multiple: int = 1) -> Batch:
        """Gather rows into a padded batch on the CPU."""
        return _padded(
            task,
            [self.tokens[self.starts[row] : self.starts[row + 1]] for row in rows],
            self.first_lengths[rows],
            self.labels[rows],
            padding_id=padding_id,
            multiple=multiple,
        )


def _padded(
    task: str, sequences: list[Any], first_lengths: NDArray[np.int32], labels: NDArray[np.float32], *,
    padding_id: int, multiple: int = 1,
) -> Batch:  # fmt: skip
    import torch

    lengths = np.array([len(sequence) for sequence in sequences])
    places = np.arange(-(-int(lengths.max()) // multiple) * multiple)
    input_ids = np.full((len(sequences), len(places)), padding_id, dtype=np.int64)
    for row, sequence in zip(input_ids, sequences, strict=True):
        row[: len(sequence)] = sequence
    mask = places < lengths[:, None]
    return Batch(
        task=task,
        input_ids_BL=torch.from_numpy(input_ids),
        token_type_ids_BL=torch.from_numpy((mask & (places >= first_lengths[:, None])).astype(np.int64)),
        mask_BL=None if mask.all() else torch.from_numpy(mask),
        labels_B=torch.from_numpy(labels),
        useful_tokens=int(lengths.sum()),
    )


def _memory_map(path: Path, dtype: str) -> NDArray[Any]:
    if path.stat().st_size == 0:  # numpy cannot map an empty file
        return np.empty(0, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r").view(np.ndarray)


def load_tokenizer(folder: Path) -> Tokenizer:
    """The Rust tokenizer of a BERT folder, without padding or truncation of its own.

    Raises UserError where the folder has neither tokenizer.json nor vocab.txt.
    """
    from tokenizers import BertWordPieceTokenizer, Tokenizer

    if (folder / "tokenizer.json").is_file():
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    elif (folder / "vocab.txt").is_file():
        settings = folder / "tokenizer_config.json"
        lowercase = json.loads(settings.read_text()).get("do_lower_case", True) if settings.is_file() else True
        tokenizer = BertWordPieceTokenizer(str(folder / "vocab.txt"), lowercase=lowercase)._tokenizer
    else:
        raise UserError(
            f"{folder}: expected tokenizer.json or vocab.txt, found neither; copy the model's tokenizer there"
        )
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def load_corpus(
    task: Task, split: str, *, data_dir: Path, cache_dir: Path, tokenizer: Tokenizer, max_length: int,
    max_characters: int, bad_rows: str, labelled: bool = True, progress: bool = True,
) -> Corpus:  # fmt: skip
    """The tokenised corpus of a split, from the cache or built now. Safe when several processes ask at once.

    Raises UserError for every fault of the file that stops it, and for a task without such a split.
    """
    name = task.file(split)
    if name is None:
        raise UserError(f"task `{task.name}` has no `{split}` file; it has {', '.join(task.files)}")
    path = data_dir / name
    recipe = {
        "format": FORMAT, "file": path.name, "max_length": max_length, "max_characters": max_characters,
        "bad_rows": bad_rows, "labelled": labelled, "task": task_to_dict(task),
        "tokenizer": hashlib.sha256(tokenizer.to_str().encode()).hexdigest(),
    }  # fmt: skip
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode())
    if path.is_file():  # a missing file is named by the reader
        with open(path, "rb") as file:
            while block := file.read(1 << 24):
                digest.update(block)
    folder = cache_dir / f"{task.name}-{split}-{digest.hexdigest()[:24]}"
    if not folder.is_dir():
        with explain_full_disk(cache_dir):
            cache_dir.mkdir(parents=True, exist_ok=True)
        with explain_full_disk(cache_dir), FileLock(f"{folder}.lock"):
            if not folder.is_dir():
                rows = read_rows(path, task, labelled=labelled, max_characters=max_characters)
                usable = _Usable(rows, path, bad_rows)
                _build(folder, usable, tokenizer, max_length, title=f"tokenising {path.name}" if progress else None)
    return Corpus(folder, path)


class _Usable:
    """The usable examples among rows; counts the others or stops at one, as the policy says."""

    def __init__(self, rows: Iterable[Example | BadRow], path: Path, policy: str):
        self.rows, self.path, self.policy = rows, path, policy
        self.bad: list[tuple[int, str]] = []
        self.count = 0

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
            self.count += 1
            if len(self.bad) < NAMED:
                self.bad.append((row.line, row.reason))


def _build(folder: Path, examples: _Usable, tokenizer: Tokenizer, max_length: int, *, title: str | None) -> None:
    """Write the corpus under another name and rename it once it is whole and on disk."""
    draft = folder.with_name(f"{folder.name}.{os.getpid()}.draft")
    draft.mkdir()
    tokenizer.enable_truncation(max_length, strategy="longest_first")
    dtype = "uint16" if tokenizer.get_vocab_size() <= 1 << 16 else "int32"
    names = ("tokens", "starts", "first_lengths", "labels", "ids", "id_starts")
    try:
        with ExitStack() as stack:
            files: dict[str, BinaryIO] = {n: stack.enter_context(open(draft / f"{n}.bin", "wb")) for n in names}
            begun = time.perf_counter()
            examples_written, truncated = _write(files, examples, tokenizer, dtype, title)
            for file in files.values():
                file.flush()
                os.fsync(file.fileno())
        if not examples_written:
            raise UserError(f"{examples.path}: no usable row among {examples.count}; the first: {examples.bad[:1]}")
        report = Report(str(examples.path), examples_written, examples.count, tuple(examples.bad), truncated)
        with open(draft / "meta.json", "w", encoding="utf-8") as meta:
            json.dump({"token_dtype": dtype, "report": asdict(report)}, meta)
            meta.flush()
            os.fsync(meta.fileno())
        draft.rename(folder)
        if title:
            say(f"{title}: {examples_written:,} rows in {time.perf_counter() - begun:.1f} s")
    finally:
        tokenizer.no_truncation()
        shutil.rmtree(draft, ignore_errors=True)


def _write(
    files: dict[str, BinaryIO], examples: Iterable[Example], tokenizer: Tokenizer, dtype: str, title: str | None
) -> tuple[int, int]:
    """Tokenise chunk by chunk and append; returns (examples, truncated examples)."""
    written = truncated = token_end = id_end = 0
    files["starts"].write(np.int64(0).tobytes())
    files["id_starts"].write(np.int64(0).tobytes())
    stream = iter(examples)
    with tqdm(desc=title, unit=" rows", disable=None if title else True, leave=False, delay=1) as bar:
        while chunk := list(islice(stream, CHUNK)):
            texts = [row.text_a if row.text_b is None else (row.text_a, row.text_b) for row in chunk]
            encodings = tokenizer.encode_batch(texts)
            lengths = np.array([len(encoding.ids) for encoding in encodings])
            ids = [row.id.encode("utf-8") for row in chunk]
            files["tokens"].write(np.concatenate([encoding.ids for encoding in encodings]).astype(dtype).tobytes())
            files["starts"].write((token_end + np.cumsum(lengths)).astype(np.int64).tobytes())
            first = np.array([encoding.type_ids.count(0) for encoding in encodings], dtype=np.int32)
            labels = np.array([np.nan if row.label is None else row.label for row in chunk], dtype=np.float32)
            files["first_lengths"].write(first.tobytes())
            files["labels"].write(labels.tobytes())
            files["ids"].write(b"".join(ids))
            files["id_starts"].write((id_end + np.cumsum([len(name) for name in ids])).astype(np.int64).tobytes())
            token_end, id_end = token_end + int(lengths.sum()), id_end + sum(map(len, ids))
            written += len(chunk)
            truncated += sum(bool(encoding.overflowing) for encoding in encodings)
            bar.update(len(chunk))
    return written, truncated


def batch_of_texts(
    task: str, texts: list[tuple[str, str | None]], tokenizer: Tokenizer, *, max_length: int, padding_id: int = 0
) -> Batch:
    """A batch straight from texts, for a person who asks about one."""
    tokenizer.enable_truncation(max_length, strategy="longest_first")
    encodings = tokenizer.encode_batch([a if b is None else (a, b) for a, b in texts])
    tokenizer.no_truncation()
    first = np.array([encoding.type_ids.count(0) for encoding in encodings], dtype=np.int32)
    unknown = np.full(len(texts), np.nan, dtype=np.float32)
    return _padded(task, [encoding.ids for encoding in encodings], first, unknown, padding_id=padding_id)
