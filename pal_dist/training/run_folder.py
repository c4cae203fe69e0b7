"""A run's folder: compared with what it held before, claimed, and held by one process."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pal_dist import __version__
from pal_dist.config.schema import RunConfig
from pal_dist.core.atomic_io import explain_full_disk, write_json
from pal_dist.core.errors import UserError
from pal_dist.distributed.engine import Engine
from pal_dist.training.checkpoint import checkpoints, newest_intact
from pal_dist.training.preemption import STOP_FILE

LOCK = ".lock"
"""File in a run's folder that the process training there holds; a killed process lets go of it."""

MARK = ".seen"
"""What rank 0 writes there for the others to find: all of them must mean the same folder."""

SEEN_WITHIN = 30.0
"""Seconds until the others find it: network file systems show a new file late."""

BEFORE_A_RUN = {LOCK, STOP_FILE, MARK, ".exit_code", ".stopped_at"}
"""What may be in the folder of a run that has not begun: a request to stop, and what launch scripts keep there."""

FREE_TO_CHANGE = {
    "output_dir",
    "resume",
    "log_every",
    "cache_dir",
    "tokens_per_micro_batch",
    "checkpoint_layers",
    "memory",
    "evaluate_every",
    "patience",
    "strategy",
    "hang_minutes",
    "save_every",
    "keep_checkpoints",
}
"""Settings that may differ when a run goes on: none of them changes what a step computes."""


def open_folder(
    run: RunConfig, origins: dict[str, str], content: dict[str, str], engine: Engine
) -> tuple[Path, Path | None]:
    """The run's folder, and the checkpoint to go on from. Rank 0 looks and writes; all ranks get the same answer.

    `content` are the hashes of the corpora: a run never goes on with other data than it began with.

    Raises UserError, on every rank, where the folder holds something else, or is not the same for all of them.
    """
    answer: Any = None
    if engine.is_main:
        try:
            folder, last, engine.lock = _open_folder(run, origins, content)
            answer = folder, last
        except UserError as error:
            answer = error
    answer = engine.gather(answer)[0]
    if isinstance(answer, UserError):
        raise answer
    folder, last = answer
    _seen_by_all(folder, engine)
    return folder, last


def _seen_by_all(folder: Path, engine: Engine) -> None:
    """Every rank writes its part of a checkpoint there, hours later: what is not shared shows now."""
    if engine.ranks == 1:
        return
    mark = folder / MARK
    if engine.is_main:
        mark.write_text(str(time.time_ns()), encoding="utf-8")
    written = engine.gather(mark.read_text(encoding="utf-8") if engine.is_main else "")[0]
    seen, end = False, time.monotonic() + SEEN_WITHIN
    while not (seen := mark.is_file() and mark.read_text(encoding="utf-8") == written) and time.monotonic() < end:
        time.sleep(0.2)
    everyone = engine.gather((socket.gethostname(), seen))
    if engine.is_main:
        mark.unlink()
    blind = next((rank for rank, (_, saw) in enumerate(everyone) if not saw), None)
    if blind is not None:
        raise UserError(
            f"--output_dir {folder}: rank {blind} on {everyone[blind][0]} does not see what rank 0 on {everyone[0][0]} "
            "wrote there; name a folder, from the root on, of a file system that all nodes share"
        )


def _open_folder(
    run: RunConfig, origins: dict[str, str], content: dict[str, str]
) -> tuple[Path, Path | None, FileLock]:
    if run.train.output_dir is None:
        taken = [int(path.name) for path in Path("runs").glob("*") if path.name.isdigit()]
        folder = Path("runs") / str(max(taken, default=0) + 1)
    else:
        folder = Path(run.train.output_dir).expanduser()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output_dir {folder}: expected a folder, found a file")
    with explain_full_disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
    last = None
    if any(path.name not in BEFORE_A_RUN for path in folder.iterdir()):
        if run.train.resume == "no":
            raise UserError(f"--output_dir {folder} is not empty, and --resume no starts anew: choose a new folder")
        if not (folder / "config.json").is_file():
            raise UserError(f"--output_dir {folder} holds files that are no run of pal-dist: choose a new folder")
        written = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        before = written["values"]
        now = json.loads(json.dumps(run.to_dict()))
        differing = [
            f"--{name} was {before[section].get(name)!r}, is {value!r}"
            for section, values in now.items()
            for name, value in values.items()
            if name not in FREE_TO_CHANGE and before.get(section, {}).get(name) != value
        ]
        changed = [name for name in content if written["content"].get(name) != content[name]]
        differing += [f"the data of {name} has changed" for name in changed]
        if differing:
            raise UserError(
                f"--output_dir {folder} holds another run: {'; '.join(differing)}. Choose a new folder, or give the "
                f"settings of that run to go on with it"
            )
        last = newest_intact(folder / "checkpoints")
        if last is None and checkpoints(folder / "checkpoints"):
            raise UserError(f"{folder / 'checkpoints'}: every checkpoint is damaged; choose a new --output_dir")
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise UserError(f"--output_dir {folder}: another process is training there; choose a new folder") from None
    values = {"pal_dist": __version__, "values": run.to_dict(), "origins": origins, "content": content}
    write_json(folder / "config.json", values)
    return folder, last, lock
