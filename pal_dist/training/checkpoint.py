"""Save and resume by parameter NAME, in safetensors; a folder is whole or not there.

A checkpoint holds trained parameters (the others come from the encoder that the run's config names), the optimizer's
state of each and the run's state. Neither data order nor dropout needs any: both are functions of (seed, step). Every
value is whole, whatever strategy it comes from, so a run can be resumed with another number of ranks or another
strategy.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pal_dist.core.atomic_io import check_room, explain_full_disk, replace_folder, sync, write_json
from pal_dist.core.console import say
from pal_dist.core.errors import UserError
from pal_dist.distributed.engine import Engine

NUMBER = "#"
"""Ends the name of a number that is no tensor."""

VALUE = "value"

STATE = "state.json"


def save_checkpoint(folder: Path, engine: Engine, state: dict[str, Any], *, keep: int) -> None:
    """Write `folder/step-N`, N being state["step"], and drop all but the last `keep`. Every rank must call it.

    Each rank writes a part of the parameters, so the parts go to disk in parallel. Raises UserError, on every rank,
    where the disk is full; earlier checkpoints stay whole.
    """
    target = folder / f"step-{state['step']:08d}"
    draft = folder / f".{target.name}.draft"
    failure: UserError | None = None
    try:
        with explain_full_disk(target):
            if engine.is_main:
                shutil.rmtree(draft, ignore_errors=True)
                draft.mkdir(parents=True)
    except UserError as error:
        failure = error
    _all_or_nothing(engine, failure, draft)
    part = f"part-{engine.rank + 1:05d}-of-{engine.ranks:05d}.safetensors"
    try:
        with explain_full_disk(target):
            tensors = _own_part(engine)
            check_room(folder, sum(tensor.nbytes for tensor in tensors.values()))
            save_file(tensors, draft / part)
            sync(draft / part)
    except UserError as error:
        failure = error
    _all_or_nothing(engine, failure, draft)
    if engine.is_main:
        sizes = {path.name: path.stat().st_size for path in sorted(draft.iterdir())}
        write_json(draft / STATE, {**state, "scaler": engine.loss_scale_state(), "files": sizes})
        replace_folder(draft, target)
        for old in checkpoints(folder)[:-keep]:
            shutil.rmtree(old, ignore_errors=True)
    engine.wait_for_everyone()


def _all_or_nothing(engine: Engine, failure: UserError | None, draft: Path) -> None:
    """Raise one rank's failure on all of them."""
    failures = [theirs for theirs in engine.gather(failure) if theirs is not None]
    if failures:
        if engine.is_main:
            shutil.rmtree(draft, ignore_errors=True)
        raise failures[0]


def _own_part(engine: Engine) -> dict[str, Tensor]:
    """Every n-th parameter with its optimizer state. All ranks walk through all of them: some have to be gathered."""
    tensors: dict[str, Tensor] = {}
    for index, (name, value, moments) in enumerate(engine.parameter_states()):
        if index % engine.ranks != engine.rank:
            continue
        tensors[f"{name}/{VALUE}"] = value.detach().cpu().contiguous()
        for key, entry in moments.items():
            if isinstance(entry, Tensor):
                tensors[f"{name}/{key}"] = entry.cpu().contiguous()
            else:
                tensors[f"{name}/{key}{NUMBER}"] = torch.tensor(entry)
    return tensors


def checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / STATE).is_file())


def newest_intact(folder: Path) -> Path | None:
    """The newest checkpoint none of whose files is missing, cut short or unreadable; damaged ones are named."""
    for path in checkpoints(folder)[::-1]:
        problem = find_damage(path)
        if problem is None:
            return path
        say(f"warning: {path} is damaged ({problem}); an older checkpoint is looked for")
    return None


def find_damage(path: Path) -> str | None:
    """What is wrong with a checkpoint's files; None: nothing."""
    try:
        sizes: dict[str, int] = json.loads((path / STATE).read_text(encoding="utf-8"))["files"]
        for name, size in sizes.items():
            size_now = (path / name).stat().st_size
            if size_now != size:
                return f"{name} has {size_now:,} bytes, expected {size:,}"
            with safe_open(path / name, framework="pt") as file:
                file.keys()
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        return str(error)
    return None


def load_state(path: Path, engine: Engine) -> dict[str, Any]:
    """The run's state as it was saved; the loss scale goes to the engine."""
    state: dict[str, Any] = json.loads((path / STATE).read_text(encoding="utf-8"))
    state.pop("files")
    engine.load_loss_scale_state(state.pop("scaler"))
    return state


def _entries(path: Path) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """(parameter, its tensors), one parameter in memory at a time."""
    for file in sorted(path.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            by_name: dict[str, list[str]] = {}
            for key in opened.keys():  # noqa: SIM118 (no mapping: it has no iterator)
                by_name.setdefault(key.rpartition("/")[0], []).append(key)
            for name, keys in by_name.items():
                yield name, {key.rpartition("/")[2]: opened.get_tensor(key) for key in keys}


def load_values(path: Path, model: torch.nn.Module) -> None:
    """Fill the trained parameters of a model that no engine has in hand yet."""
    parameters = dict(model.named_parameters())
    for name, entries in _entries(path):
        parameters[name].data.copy_(entries[VALUE])


def load_moments(path: Path, engine: Engine) -> None:
    """Give the optimizer its state back, under whatever strategy the engine has."""
    for name, entries in _entries(path):
        moments = {
            key.removesuffix(NUMBER): value.item() if key.endswith(NUMBER) else value
            for key, value in entries.items()
            if key != VALUE
        }
        if moments:
            engine.backend.load_optimizer_state(name, moments)
