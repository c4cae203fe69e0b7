"""A run's folder: compared with what it held before, claimed, and held by one process."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pal_dist import __version__
from pal_dist.config.resolve import names_where
from pal_dist.config.schema import RunConfig
from pal_dist.core.atomic_io import explain_full_disk, write_json
from pal_dist.core.console import say
from pal_dist.core.errors import UserError
from pal_dist.distributed.engine import Engine
from pal_dist.monitoring import run_files
from pal_dist.monitoring.run_records import read_config
from pal_dist.monitoring.status_file import read_status
from pal_dist.training.checkpoint import checkpoint_folders, newest_intact

RUNS = Path("runs")
"""Where runs without --output_dir go, numbered."""

LOCK = ".lock"
"""File in a run's folder that the process training there holds; a killed process lets go of it."""

PROBE = ".seen"
"""What rank 0 writes there for the others to see: all of them must mean the same folder."""

SEEN_WITHIN = 30.0
"""Seconds until the others see it: network file systems show a new file late."""

BEFORE_A_RUN = {LOCK, run_files.STOP, PROBE, ".exit_code", ".stopped_at"}
"""What may be in the folder of a run that has not begun: a request to stop, and what launch scripts keep there."""


def open_folder(
    config: RunConfig, origins: dict[str, str], hashes: dict[str, str], engine: Engine
) -> tuple[Path, Path | None]:
    """The run's folder, and the checkpoint to resume from. Rank 0 looks and writes; all ranks get the same answer.

    Args:
        origins: where each setting's value came from.
        hashes: what identifies each corpus: a run is never resumed with other data than it began with.

    Raises UserError, on every rank, where the folder holds something else, or is not the same for all of them.
    """
    outcome: Any = None
    if engine.is_main:
        try:
            folder, checkpoint, engine.run_folder_lock = _claim(config, origins, hashes)
            outcome = folder, checkpoint
        except UserError as error:
            outcome = error
    outcome = engine.gather(outcome)[0]
    if isinstance(outcome, UserError):
        raise outcome
    folder, checkpoint = outcome
    _check_seen_by_all(folder, engine)
    return folder, checkpoint


def _check_seen_by_all(folder: Path, engine: Engine) -> None:
    """Every rank writes its part of a checkpoint there, hours later: what is not shared shows now."""
    if engine.ranks == 1:
        return
    probe = folder / PROBE
    if engine.is_main:
        probe.write_text(str(time.time_ns()), encoding="utf-8")
    written = engine.gather(probe.read_text(encoding="utf-8") if engine.is_main else "")[0]
    end = time.monotonic() + SEEN_WITHIN
    while not (seen := probe.is_file() and probe.read_text(encoding="utf-8") == written) and time.monotonic() < end:
        time.sleep(0.2)
    by_rank = engine.gather((socket.gethostname(), seen))
    if engine.is_main:
        probe.unlink()
    blind = next((rank for rank, (_, saw) in enumerate(by_rank) if not saw), None)
    if blind is not None:
        raise UserError(
            f"--output_dir {folder}: rank {blind} on {by_rank[blind][0]} does not see what rank 0 on {by_rank[0][0]} "
            "wrote there; name a folder, from the root on, of a file system that all nodes share"
        )


def _claim(config: RunConfig, origins: dict[str, str], hashes: dict[str, str]) -> tuple[Path, Path | None, FileLock]:
    folder = Path(config.train.output_dir).expanduser() if config.train.output_dir else _next_number()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output_dir {folder}: expected a folder, found a file")
    with explain_full_disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
    checkpoint = None
    if any(path.name not in BEFORE_A_RUN for path in folder.iterdir()):
        _check_is_this_run(folder, config, hashes)
        checkpoint = _checkpoint_of(folder)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise UserError(f"--output_dir {folder}: another process is training there; choose a new folder") from None
    values = {"pal_dist": __version__, "values": config.to_dict(), "origins": origins, "content": hashes}
    write_json(folder / run_files.CONFIG, values)
    return folder, checkpoint, lock


def _checkpoint_of(folder: Path) -> Path | None:
    """What to resume from; None where the run has saved nothing yet, which is said. Raises UserError where that is
    lost: the run would begin anew over what it has written."""
    checkpoint = newest_intact(folder / run_files.CHECKPOINTS)
    if checkpoint is not None:
        return checkpoint
    if checkpoint_folders(folder / run_files.CHECKPOINTS):
        raise UserError(f"{folder / run_files.CHECKPOINTS}: every checkpoint is damaged; choose a new --output_dir")
    if (folder / run_files.RESULTS).is_file():
        raise UserError(
            f"{folder}: the run there has ended ({run_files.RESULTS}), but no checkpoint is left to resume it from; "
            f"choose a new --output_dir"
        )
    status = read_status(folder)
    if status is not None and status.step:
        say(
            f"warning: {folder}: the run came to step {status.step:,} but left no checkpoint; it begins at step 1 again"
        )
    return None


def _next_number() -> Path:
    taken = [int(path.name) for path in RUNS.glob("*") if path.name.isdigit()]
    return RUNS / str(max(taken, default=0) + 1)


def _check_is_this_run(folder: Path, config: RunConfig, hashes: dict[str, str]) -> None:
    """Raises UserError where the folder holds no run, or a run of other settings or data."""
    if config.train.resume == "no":
        raise UserError(f"--output_dir {folder} is not empty, and --resume no starts anew: choose a new folder")
    if not (folder / run_files.CONFIG).is_file():
        raise UserError(
            f"--output_dir {folder} holds files that are no run of pal-dist ({run_files.CONFIG} is missing): choose a "
            f"new folder"
        )
    try:
        written = read_config(folder)
    except UserError as error:
        raise UserError(f"{error}. Put the file back from a copy, or choose a new --output_dir") from None
    before, now = written.values, json.loads(json.dumps(config.to_dict()))
    may_differ = names_where(resumable=True)
    differing = [
        f"--{name} was {before[section].get(name)!r}, is {value!r}"
        for section, values in now.items()
        for name, value in values.items()
        if name not in may_differ and before.get(section, {}).get(name) != value
    ]
    changed = [name for name in hashes if written.content.get(name) != hashes[name]]
    differing += [f"the data of {name} has changed" for name in changed]
    if differing:
        raise UserError(
            f"--output_dir {folder} holds another run: {'; '.join(differing)}. Choose a new folder, or give the "
            f"settings of that run to resume it"
        )
