"""The verb `doctor`: will a run work here? Everything is looked at; what is not green comes with its cure."""

from __future__ import annotations

import io
import json
import shutil
import socket
from collections.abc import Iterator
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from pal_dist.commands.doctor import gpus, host, together
from pal_dist.commands.doctor.findings import LEVELS, Finding, look
from pal_dist.config.schema import RunConfig
from pal_dist.core.console import table
from pal_dist.distributed.engine import Engine
from pal_dist.training.trainer import Trainer

TRIAL = ".doctor"
"""Folder of the trial run, below the run's own."""


@dataclass(frozen=True)
class Diagnosis:
    """All findings, of all ranks."""

    findings: tuple[Finding, ...]
    is_main: bool

    @property
    def exit_code(self) -> int:
        """1 where something is red."""
        return int(self.level == "red")

    @property
    def level(self) -> str:
        return max((finding.level for finding in self.findings), key=LEVELS.index)

    def text(self) -> str:
        rows = [[finding.level, finding.check, finding.found.replace("\n", " ")] for finding in self.findings]
        lines = [table(["", "check", "found"], rows), ""]
        lines += [f"{finding.level}: {finding.check}: {finding.cure}" for finding in self.findings if finding.cure]
        verdict = {"green": "all is well", "yellow": "it will work, with the drawbacks above",
                   "red": "a run would fail here: mend what is red first"}[self.level]  # fmt: skip
        return "\n".join([*lines, verdict])

    def json(self) -> str:
        return json.dumps({"level": self.level, "findings": [asdict(finding) for finding in self.findings]})


def examine(run: RunConfig, *, cache_dir: Path, rank: int = 0) -> Diagnosis:
    """Look at this machine, then at all ranks together; every rank must call it. `rank` is the launcher's word."""
    base = Path(run.train.output_dir or "runs").expanduser()
    folder = base / TRIAL
    if rank == 0:
        shutil.rmtree(folder, ignore_errors=True)
    cache = Path(run.data.cache_dir).expanduser() if run.data.cache_dir else cache_dir
    said = io.StringIO()
    trainer: list[Trainer] = []

    def meet() -> Iterator[Finding]:
        with redirect_stderr(said):
            trainer.append(together.start(run, folder, cache))
        yield from ()

    failed = look("start", meet)
    engine = trainer[0].engine if trainer else None
    mine = [*local(run, engine, base, cache), *failed]
    if engine is None:
        return Diagnosis(tuple(mine), is_main=rank == 0)
    everyone = engine.gather((socket.gethostname(), mine))
    shared = [
        *look("ranks", lambda: together.ranks(engine, base)),
        *look("speed", lambda: together.speeds(engine)),
    ]
    with redirect_stderr(said):
        shared += look("training", lambda: together.training(trainer[0]))
        together.leave(trainer[0], folder)
    return Diagnosis((*merged(everyone), *shared), is_main=engine.is_main)


def local(run: RunConfig, engine: Engine | None, base: Path, cache: Path) -> list[Finding]:
    """What one process finds on its own machine."""
    device = engine.device if engine else torch.device("cuda" if torch.cuda.is_available() else "cpu")
    local_ranks = engine.group.local_ranks if engine else 1
    nodes = engine.ranks // local_ranks if engine else 1
    return [
        *look("versions", host.versions),
        *look("GPU", lambda: gpus.devices(run.train.precision)),
        *look("8-bit optimizers", lambda: gpus.optimizers(device)),
        *look("compilers", gpus.operations),
        *look("processors", lambda: host.processors(local_ranks)),
        *look("host memory", lambda: host.memory(local_ranks)),
        *look("shared memory", lambda: host.shared_memory(torch.cuda.device_count())),
        *look("output_dir", lambda: host.folder("output_dir", base)),
        *look("cache_dir", lambda: host.folder("cache_dir", cache)),
        *look("host name", lambda: host.names(nodes)),
        *look("limits", host.limits),
    ]


def merged(everyone: list[tuple[str, list[Finding]]]) -> list[Finding]:
    """Rank 0's findings, and what other hosts found otherwise that is not green, with their names."""
    first_host, first = everyone[0]
    found = list(first)
    known = {(finding.check, finding.level) for finding in first}
    for name, theirs in everyone[1:]:
        for finding in theirs:
            key = (finding.check, finding.level)
            if finding.level != "green" and (name != first_host or key not in known):
                told = replace(finding, check=f"{finding.check} ({name})")
                if told not in found:
                    found.append(told)
    return found
