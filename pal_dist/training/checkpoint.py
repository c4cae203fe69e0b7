"""Save and resume by parameter NAME, in safetensors; a folder is whole or not there.

A checkpoint holds trained parameters (the others come from the encoder that the run's config names), the optimizer's
state of each and the run's state. Neither data order nor dropout needs any: both are functions of (seed, step). Every
value is whole, whatever strategy it comes from, so a run can be resumed with another number of ranks or another
strategy.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pal_dist.core.atomic_io import atomic_folder, check_room, draft_of, explain_full_disk, sync, write_json
from pal_dist.core.checksums import SUMS_FILE, damages, sha256_of, write_sums
from pal_dist.core.console import say
from pal_dist.core.documents import brief, load_mapping, there_is
from pal_dist.core.errors import UserError
from pal_dist.core.shapes import Count, read_as
from pal_dist.distributed.engine import Engine
from pal_dist.training.run_state import RunState
from pal_dist.training.shared_errors import raise_on_every_rank

VALUE = "value"
"""Name of a parameter's own tensor; its other tensors are called as the optimizer calls its state."""

NUMBER_SUFFIX = "#"
"""Ends the name of optimizer state that is a number and no tensor."""

STATE_FILE = "state.json"
"""The run's state, and the size of every other file of the checkpoint."""


@dataclass(frozen=True)
class SavedFiles:
    """What `state.json` has beside the run's state."""

    files: Mapping[str, Count]
    """Size of every other file, in bytes."""
    scaler: Mapping[str, float]
    """fp16's loss scale; empty in other precisions."""
    checksums: bool = False
    """Whether there are checksums of all of them, as checkpoints of before have not."""


def save_checkpoint(folder: Path, engine: Engine, state: dict[str, Any], *, keep: int) -> None:
    """Write `folder/step-N`, N being state["step"], and drop all but the last `keep`. Every rank must call it.

    Each rank writes a part of the parameters, so the parts go to disk in parallel. Raises UserError, on every rank,
    where the disk is full; earlier checkpoints stay whole.
    """
    target = folder / f"step-{state['step']:08d}"
    draft = draft_of(target, "all-ranks")
    part = draft / f"part-{engine.rank + 1:05d}-of-{engine.ranks:05d}.safetensors"
    with ExitStack() as writing:
        with raise_on_every_rank(engine):
            if engine.is_main:
                writing.enter_context(atomic_folder(target, draft=draft))
        with raise_on_every_rank(engine), explain_full_disk(target):
            tensors = _own_part(engine)
            check_room(folder, sum(tensor.nbytes for tensor in tensors.values()))
            save_file(tensors, part)
            sync(part)
            checksum = sha256_of(part)
        sums = dict(engine.gather((part.name, checksum)))
        with raise_on_every_rank(engine):
            if engine.is_main:
                sizes = {path.name: path.stat().st_size for path in sorted(draft.iterdir())}
                values = {**state, "scaler": engine.loss_scale_state(), "files": sizes, "checksums": True}
                write_json(draft / STATE_FILE, values)
                write_sums(draft, {**sums, STATE_FILE: sha256_of(draft / STATE_FILE)})
            writing.close()  # puts the folder in its place
    if engine.is_main:
        left_by_killed_processes = list(folder.glob(".step-*.draft"))
        until_now = [path for path in checkpoints(folder) if path.name <= target.name]  # later ones are damaged
        for old in [*until_now[:-keep], *left_by_killed_processes]:
            shutil.rmtree(old, ignore_errors=True)
    engine.wait_for_everyone()


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
                tensors[f"{name}/{key}{NUMBER_SUFFIX}"] = torch.tensor(entry)
    return tensors


def checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    return [path for path in checkpoint_folders(folder) if (path / STATE_FILE).is_file()]


def checkpoint_folders(folder: Path) -> list[Path]:
    """Where checkpoints are, oldest first; those among them that have lost their state too."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def newest_intact(folder: Path) -> Path | None:
    """The newest checkpoint all of whose files are there, as they were written; damaged ones are named."""
    for path in checkpoint_folders(folder)[::-1]:
        problem = find_damage(path)
        if problem is None:
            return path
        say(f"warning: {path} is damaged ({problem}); an older checkpoint is looked for")
    return None


def find_damage(path: Path) -> str | None:
    """What is wrong with a checkpoint's files; None: nothing."""
    try:
        written = load_mapping(path / STATE_FILE)
        saved = read_as(SavedFiles, written, where=STATE_FILE)
        state = RunState.from_json(written, where=STATE_FILE)
        if path.name != f"step-{state.step:08d}":
            return f"{STATE_FILE} is of step {state.step:,}"
        for name, size in saved.files.items():
            if not there_is(path / name):
                return f"{brief(name)[1:-1]} is missing"
            size_now = (path / name).stat().st_size
            if size_now != size:
                return f"{name} has {size_now:,} bytes, expected {size:,}"
            with safe_open(path / name, framework="pt") as file:
                file.keys()
        if saved.checksums and not (path / SUMS_FILE).is_file():
            return f"{SUMS_FILE} is missing"
        return next(damages(path, [*saved.files, STATE_FILE]), None)
    except (OSError, UserError, SafetensorError) as error:
        return "; ".join(str(error).splitlines())


def load_state(path: Path, engine: Engine) -> dict[str, Any]:
    """The run's state as it was saved; the loss scale goes to the engine."""
    state = load_mapping(path / STATE_FILE)
    engine.load_loss_scale_state(state["scaler"])
    return {name: value for name, value in state.items() if name not in SavedFiles.__dataclass_fields__}


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
        value = entries.get(VALUE)
        if name not in parameters or value is None or value.shape != parameters[name].shape:
            raise UserError(f"{path}: `{name}` is no parameter of this run's model, or has another shape there")
        parameters[name].data.copy_(value)


def load_moments(path: Path, engine: Engine) -> None:
    """Give the optimizer its state back, under whatever strategy the engine has."""
    for name, entries in _entries(path):
        moments = {
            key.removesuffix(NUMBER_SUFFIX): value.item() if key.endswith(NUMBER_SUFFIX) else value
            for key, value in entries.items()
            if key != VALUE
        }
        if moments:
            engine.backend.load_optimizer_state(name, moments)
