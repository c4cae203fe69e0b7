"""Where a run's inputs are on this machine, and its corpora; without PyTorch, so that text is prepared in a second."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pal_dist.config.resolve import names_where
from pal_dist.config.schema import RunConfig
from pal_dist.core.errors import UserError
from pal_dist.data.readers import require_file
from pal_dist.data.synthetic import built_in_corpus
from pal_dist.data.token_cache import Corpus, load_corpus
from pal_dist.data.tokenizer import load_tokenizer
from pal_dist.models.pretrained import find_model
from pal_dist.tasks.registry import Task, resolve_tasks

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class InputPaths:
    """Where a run's inputs are on this machine."""

    data_dir: Path
    cache_dir: Path
    model_dir: Path
    synthetic: bool
    """The text is the built-in corpus, made by rule."""


@dataclass(frozen=True)
class Inputs:
    """What a run reads, before anything of it is loaded."""

    tasks: tuple[Task, ...]
    paths: InputPaths
    tokenizer: Tokenizer


@dataclass(frozen=True)
class Corpora:
    """The examples of a run."""

    train: dict[str, Corpus]
    """By task, in the order of the tasks."""
    dev: dict[str, Corpus]
    """By task; a task without a dev file has none."""

    @property
    def hashes(self) -> dict[str, str]:
        """What identifies each corpus, by `train/sst` and so on: a run is resumed with the data it began with."""
        train = {f"train/{task}": corpus.key for task, corpus in self.train.items()}
        return train | {f"dev/{task}": corpus.key for task, corpus in self.dev.items()}


def locate_inputs(config: RunConfig, default_cache: Path) -> InputPaths:
    """Raises UserError for a data folder or a model that is not there."""
    cache_dir = Path(config.data.cache_dir).expanduser() if config.data.cache_dir else default_cache
    synthetic = config.data.data_dir == "builtin"
    data_dir = built_in_corpus(cache_dir) if synthetic else Path(config.data.data_dir).expanduser()
    if not data_dir.is_dir():
        raise UserError(f"--data_dir {data_dir}: there is no such folder")
    return InputPaths(data_dir, cache_dir, find_model(config.model.model), synthetic)


def find_inputs(config: RunConfig, default_cache: Path) -> Inputs:
    """The run's tasks, where their files and the encoder are, and the tokenizer. Raises UserError."""
    tasks = resolve_tasks(config.data.tasks)
    paths = locate_inputs(config, default_cache)
    return Inputs(tasks, paths, load_tokenizer(paths.model_dir))


def read_corpora(config: RunConfig, inputs: Inputs, *, progress: bool = True) -> Corpora:
    """Training and dev split of every task, tokenised now or by an earlier run. Raises UserError."""
    train = load_corpora(config, inputs.tasks, "train", inputs.paths, inputs.tokenizer, progress=progress)
    dev = load_corpora(config, inputs.tasks, "dev", inputs.paths, inputs.tokenizer, optional=True, progress=progress)
    return Corpora(train, dev)


def load_corpora(
    config: RunConfig,
    tasks: tuple[Task, ...],
    split: str,
    paths: InputPaths,
    tokenizer: Tokenizer,
    *,
    labelled: bool = True,
    optional: bool = False,
    progress: bool = True,
) -> dict[str, Corpus]:
    """The split of every task; `optional`: tasks that name no such file are left out. Raises UserError."""
    having = [task for task in tasks if task.file(split) is not None or not optional]
    for task in having:  # all of them, before the first is tokenised
        require_file(paths.data_dir / (task.file(split) or split), task)
    reading: dict[str, Any] = {name: getattr(config.data, name) for name in names_where(makes_corpus=True)}
    return {
        task.name: load_corpus(
            task,
            split,
            data_dir=paths.data_dir,
            cache_dir=paths.cache_dir,
            tokenizer=tokenizer,
            labelled=labelled,
            progress=progress,
            **reading,
        )
        for task in having
    }


def tokenize(config: RunConfig, *, cache_dir: Path) -> None:
    """Tokenise what training would read, once, so that no process of it has to. Raises UserError."""
    read_corpora(config, find_inputs(config, cache_dir))
