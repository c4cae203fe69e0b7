"""Where a run's inputs are on this machine, and its corpora; without PyTorch, so that text is prepared in a second."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pal_dist.config.schema import RunConfig
from pal_dist.core.errors import UserError
from pal_dist.data.readers import require_file
from pal_dist.data.synthetic import built_in_corpus
from pal_dist.data.token_cache import Corpus, load_corpus, load_tokenizer
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


def locate(run: RunConfig, default_cache: Path) -> InputPaths:
    """Raises UserError for a data folder or a model that is not there."""
    cache_dir = Path(run.data.cache_dir).expanduser() if run.data.cache_dir else default_cache
    synthetic = run.data.data_dir == "builtin"
    data_dir = built_in_corpus(cache_dir) if synthetic else Path(run.data.data_dir).expanduser()
    if not data_dir.is_dir():
        raise UserError(f"--data_dir {data_dir}: there is no such folder")
    return InputPaths(data_dir, cache_dir, find_model(run.model.model), synthetic)


def load_corpora(
    run: RunConfig, tasks: tuple[Task, ...], split: str, sources: InputPaths, tokenizer: Tokenizer, *,
    labelled: bool = True, optional: bool = False, progress: bool = True,
) -> dict[str, Corpus]:  # fmt: skip
    """The split of every task; `optional`: tasks that name no such file are left out."""
    chosen = [task for task in tasks if task.file(split) is not None or not optional]
    for task in chosen:  # all of them, before the first is tokenised
        require_file(sources.data_dir / (task.file(split) or split), task)
    return {
        task.name: load_corpus(
            task, split, data_dir=sources.data_dir, cache_dir=sources.cache_dir, tokenizer=tokenizer,
            max_length=run.data.max_length, max_characters=run.data.max_characters, bad_rows=run.data.bad_rows,
            labelled=labelled, progress=progress,
        )
        for task in chosen
    }  # fmt: skip


def tokenize(run: RunConfig, *, cache_dir: Path) -> None:
    """Tokenise what training would read, once, so that no process of it has to. Raises UserError."""
    tasks, sources = resolve_tasks(run.data.tasks), locate(run, cache_dir)
    tokenizer = load_tokenizer(sources.model_dir)
    load_corpora(run, tasks, "train", sources, tokenizer)
    load_corpora(run, tasks, "dev", sources, tokenizer, optional=True)
