"""The verb `data`: files of tasks fetched from where they are published, or tokenised before a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pal_dist.commands.options import FETCH_OPTIONS, FETCHED_TASKS
from pal_dist.commands.verb import refuse_others
from pal_dist.config.resolve import from_command_line
from pal_dist.core.errors import UserError
from pal_dist.data.download import fetch
from pal_dist.training.inputs import tokenize


def prepare_data(action: str, flags: Mapping[str, str], *, cache_dir: Path) -> list[Path]:
    """Fetch or tokenise; returns the paths of what was fetched. Raises UserError.

    Args:
        action: `fetch` or `tokenize`.
        flags: FETCH_OPTIONS for `fetch`, the settings of a run for `tokenize`, as typed.
        cache_dir: where tokenised corpora are kept unless the settings say otherwise.
    """
    if action == "tokenize":
        run, _ = from_command_line(flags)
        tokenize(run, cache_dir=cache_dir)
        return []
    if action != "fetch" or "data_dir" not in flags:
        raise UserError("use: pal-dist data fetch --data_dir FOLDER [--tasks sst,para,sts,cola,...], or data tokenize")
    refuse_others(flags, FETCH_OPTIONS)
    return fetch(Path(flags["data_dir"]).expanduser(), flags.get("tasks", FETCHED_TASKS).split(","))
