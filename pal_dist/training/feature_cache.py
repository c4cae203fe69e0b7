"""What the heads of a frozen encoder read: computed once, kept on disk, served instead of tokens.

Where nothing below the heads is trained, their input is a constant of each example. It is computed as in evaluation,
by all ranks together, while the model is whole on each of them, and kept in a file that is memory-mapped. Its name is a
hash of everything that made it: the corpus, the encoder's weights and config, the pooling, the number format.

Shapes: D hidden.
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from pal_dist.core.atomic_io import draft_of, write_json
from pal_dist.core.console import say
from pal_dist.core.errors import UserError
from pal_dist.core.units import gib
from pal_dist.data.batch import TextRows
from pal_dist.data.token_cache import Corpus
from pal_dist.distributed.engine import Engine
from pal_dist.models.multi_task import MultiTaskBert
from pal_dist.tasks.registry import Task
from pal_dist.training.evaluate import run_rows
from pal_dist.training.feature_file import FeatureRows, find_damage, write_feature_file
from pal_dist.training.shared_errors import raise_on_every_rank

FEATURE_FORMAT = 1
"""Raised when a feature file or what the encoder computes changes; older files are then not found."""

CHUNK_PER_RANK, LARGEST_CHUNK = 2048, 1 << 16
"""Examples of one rank, and at most of all ranks together, that are computed before they go to disk: they pass through
every rank's memory."""

CONFIG_WITHOUT_EFFECT = {
    "tasks",
    "head_layers",
    "head_dropout",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "trained_length",
    "architectures",
    "transformers_version",
    "_name_or_path",
    "dtype",
}
"""Entries of a model's config that do not change what an encoder gives in evaluation. (Texts are cut by the corpus.)"""


class FeatureCorpus(Corpus):
    """A corpus whose rows carry what the heads read. Lengths stay those of the texts: the schedule is the same."""

    def __init__(self, texts: Corpus, features: NDArray[Any]):
        """`features`: (examples, D), in the order of `texts`."""
        super().__init__(texts.folder, Path(texts.report.file))
        self.features = features

    def rows(self, rows: NDArray[np.int64]) -> TextRows:
        """What the heads read of these rows, in place of their tokens."""
        return TextRows(
            tokens=self.tokens[:0],
            lengths=self.lengths[rows],
            first_lengths=self.first_lengths[rows],
            labels=self.labels[rows],
            features=self.features[rows],
        )


@dataclass
class FeatureCache:
    """Features of a run's corpora, from disk or computed now, on every rank."""

    model: MultiTaskBert
    engine: Engine
    folder: Path
    budget: int
    """Tokens that go through the encoder at once."""
    examples: int = 0
    bytes: int = 0
    computed_bytes: int = 0
    seconds: float = 0.0
    """Spent computing, this time."""
    _weights: Any = field(default=None, init=False)

    def all_of(self, tasks: tuple[Task, ...], corpora: Mapping[str, Corpus]) -> dict[str, Corpus]:
        """The corpora, by the names of their tasks, with features. Raises UserError on every rank (a full disk,
        encoders that differ) and DoesNotFitError where the encoder cannot run a single example."""
        return {task.name: self.of(task, corpora[task.name]) for task in tasks if task.name in corpora}

    def of(self, task: Task, corpus: Corpus) -> FeatureCorpus:
        """The corpus with its features; raises as `all_of`."""
        engine = self.engine
        width, dtype = self.model.config.hidden_size, str(next(self.model.parameters()).dtype).removeprefix("torch.")
        shape = len(corpus), width
        path = self.folder / f"{corpus.key}-features-{self.hash_of(task, corpus)}.npy"
        if not self._everywhere(path, shape, dtype, warn=False):
            # Another run may be computing them. Only rank 0 waits for it, so that no two runs can wait for each other.
            with FileLock(f"{path}.lock") if engine.is_main else nullcontext():
                if not self._everywhere(path, shape, dtype, warn=True):
                    self._compute(path, task, corpus, shape, dtype)
        features = np.load(path, mmap_mode="r").view(np.ndarray)
        self.examples += len(corpus)
        self.bytes += features.nbytes
        return FeatureCorpus(corpus, features)

    def hash_of(self, task: Task, corpus: Corpus) -> str:
        """Of everything that makes the features. Raises UserError, on every rank, where ranks do not agree on it."""
        config = {
            name: value for name, value in self.model.config.to_dict().items() if name not in CONFIG_WITHOUT_EFFECT
        }
        recipe = {
            "format": FEATURE_FORMAT,
            "corpus": corpus.key,
            "precision": self.engine.precision.name,
            "config": config,
        }
        if self._weights is None:
            self._weights = _digest(self.model.encoder)
        digest = _digest(self.model.task_adapters[task.name], self._weights.copy())
        digest.update(json.dumps(recipe, sort_keys=True, default=str).encode())
        own_hash = digest.hexdigest()[:24]
        by_rank = self.engine.gather(own_hash)
        if len(set(by_rank)) > 1:
            other = next(rank for rank, hashed in enumerate(by_rank) if hashed != by_rank[0])
            raise UserError(
                f"rank {other} has another encoder than rank 0, or runs it in another precision: give every node the "
                f"same files of --model"
            )
        return own_hash

    def _everywhere(self, path: Path, shape: tuple[int, int], dtype: str, *, warn: bool) -> bool:
        """Whether every node has the whole file; one rank of each looks."""
        problem = find_damage(path, shape, dtype) if self.engine.group.local_rank == 0 else None
        if problem and warn and path.is_file():
            say(f"warning: {path} is damaged ({problem}); it is computed again")
        return all(self.engine.gather(problem is None))

    def _compute(self, path: Path, task: Task, corpus: Corpus, shape: tuple[int, int], dtype: str) -> None:
        """Run the encoder over the corpus, a chunk at a time; one rank of each folder writes."""
        engine, begun = self.engine, time.perf_counter()
        self.model.eval()
        draft = path.parent / engine.gather(draft_of(path, uuid.uuid4().hex).name)[0]
        files: list[FeatureRows] = []
        with ExitStack() as writing:
            with raise_on_every_rank(engine):
                if engine.is_main:
                    files.append(writing.enter_context(write_feature_file(path, draft, shape, dtype)))
            # A node that does not see rank 0's draft has a folder of its own.
            has_own_folder = engine.group.local_rank == 0 and not draft.exists()
            with raise_on_every_rank(engine):
                if has_own_folder:
                    files.append(writing.enter_context(write_feature_file(path, draft, shape, dtype)))
            for values in self._chunks(task, corpus, shape, dtype):
                for rows in files:
                    rows.append(values)
            with raise_on_every_rank(engine):
                writing.close()  # puts the file in its place
        seconds = time.perf_counter() - begun
        self.seconds += seconds
        self.computed_bytes += shape[0] * shape[1] * np.dtype(dtype).itemsize
        if engine.is_main:
            say(f"features of {task.name}: {shape[0]:,} examples of {corpus.report.file} in {seconds:.1f} s")

    def _chunks(self, task: Task, corpus: Corpus, shape: tuple[int, int], dtype: str) -> Iterator[NDArray[Any]]:
        """The features of the corpus in order, a chunk of (examples, D) at a time, on every rank."""
        engine, (examples, width) = self.engine, shape
        size = min(CHUNK_PER_RANK * engine.ranks, LARGEST_CHUNK)
        title, disable = f"features of {task.name}", None if engine.is_main else True
        with tqdm(total=examples, desc=title, unit=" examples", leave=False, delay=1, disable=disable) as bar:
            for start in range(0, examples, size):
                rows = range(start, min(start + size, examples))
                yield run_rows(
                    engine,
                    lambda batch: engine.run_in_precision(self.model.pooled, batch),
                    task,
                    corpus,
                    rows,
                    outputs=width,
                    budget=self.budget,
                    doing="computing features of",
                    dtype=dtype,
                )
                bar.update(len(rows))

    def lines(self) -> list[str]:
        """What the person is told before step 1."""
        config = self.model.config
        from_disk = self.bytes - self.computed_bytes
        how = " and ".join(
            [f"{gib(self.computed_bytes)} computed in {self.seconds:.1f} s"] * bool(self.computed_bytes)
            + [f"{gib(from_disk)} found"] * bool(from_disk)
        )
        return [
            f"features: nothing below the heads is trained, so what they read is kept: {self.examples:,} examples x "
            f"{config.hidden_size}, {gib(self.bytes)} in {self.folder} ({how})",
            f"features: computed as in evaluation: the encoder's dropout ({config.hidden_dropout_prob:g}) is off, the "
            f"heads' ({config.head_dropout:g}) is on; --features off runs the encoder in every step, its dropout on",
            "memory: no plan and no proof: a step holds features and heads alone, in one micro-batch",
        ]

    def record(self, file: Path) -> None:
        """Write into the run's folder what stands there in place of a memory plan."""
        write_json(
            file,
            {
                "plan": None,
                "features": {
                    "cached": True,
                    "examples": self.examples,
                    "bytes": self.bytes,
                    "computed_bytes": self.computed_bytes,
                    "seconds": self.seconds,
                    "folder": str(self.folder),
                },
            },
        )


def _digest(module: torch.nn.Module, digest: Any = None) -> Any:
    """Of the names, shapes and bytes of a module's values."""
    digest = digest or hashlib.sha256()
    values: dict[str, Tensor] = module.state_dict()
    for name, value in values.items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest
