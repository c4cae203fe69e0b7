"""The verb `doctor`: will a run work here? Everything is looked at; what is not green comes with its cure."""

from __future__ import annotations

import io
import shutil
import socket
from collections.abc import Iterator
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from pal_dist.commands.doctor import all_ranks, devices, host
from pal_dist.commands.doctor.findings import LEVELS, Finding, run_check
from pal_dist.config.schema import RunConfig
from pal_dist.core.atomic_io import to_json
from pal_dist.core.console import table
from pal_dist.distributed.engine import Engine
from pal_dist.training.run import Run

TRIAL = ".doctor"
"""Folder of the trial run, below the run's own."""

VERDICTS = {
    "green": "all is well",
    "yellow": "it will work, with the drawbacks above",
    "red": "a run would fail here: mend what is red first",
}


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
        cures = [f"{finding.level}: {finding.check}: {finding.cure}" for finding in self.findings if finding.cure]
        return "\n".join([table(["", "check", "found"], rows), "", *cures, VERDICTS[self.level]])

    def json(self) -> str:
        return to_json({"level": self.level, "findings": [asdict(finding) for finding in self.findings]})


def diagnose(config: RunConfig, *, cache_dir: Path, rank: int = 0) -> Diagnosis:
    """Look at this machine, then at all ranks together. Every rank must call it.

    Args:
        rank: this process's, as the launcher says: known even where the ranks cannot meet.
    """
    output_dir = Path(config.train.output_dir or "runs").expanduser()
    folder = output_dir / TRIAL
    if rank == 0:
        shutil.rmtree(folder, ignore_errors=True)
    cache = Path(config.data.cache_dir).expanduser() if config.data.cache_dir else cache_dir
    not_shown = io.StringIO()  # the trial run's own words
    runs: list[Run] = []

    def start() -> Iterator[Finding]:
        with redirect_stderr(not_shown):
            runs.append(all_ranks.start(config, folder, cache))
        yield from ()

    failures = run_check("start", start)
    engine = runs[0].engine if runs else None
    own = [*check_machine(config, engine, output_dir, cache), *failures]
    if engine is None:
        return Diagnosis(tuple(own), is_main=rank == 0)
    by_rank = engine.gather((socket.gethostname(), own))
    shared = [
        *run_check("ranks", lambda: all_ranks.ranks(engine, output_dir)),
        *run_check("speed", lambda: all_ranks.speeds(engine)),
    ]
    with redirect_stderr(not_shown):
        shared += run_check("training", lambda: all_ranks.training(runs[0]))
        all_ranks.clean_up(runs[0], folder)
    return Diagnosis((*merged(by_rank), *shared), is_main=engine.is_main)


def check_machine(config: RunConfig, engine: Engine | None, output_dir: Path, cache: Path) -> list[Finding]:
    """What one process finds on its own machine."""
    device = engine.device if engine else torch.device("cuda" if torch.cuda.is_available() else "cpu")
    local_ranks = engine.group.local_ranks if engine else 1
    nodes = engine.ranks // local_ranks if engine else 1
    return [
        *run_check("versions", host.versions),
        *run_check("GPU", lambda: devices.gpus(config.train.precision)),
        *run_check("attention", lambda: devices.attention(device, config.train.precision)),
        *run_check("8-bit optimizers", lambda: devices.eight_bit_optimizers(device)),
        *run_check("compilers", lambda: devices.compilers(device)),
        *run_check("processors", lambda: host.processors(local_ranks)),
        *run_check("host memory", lambda: host.memory(local_ranks)),
        *run_check("shared memory", lambda: host.shared_memory(torch.cuda.device_count())),
        *run_check("output_dir", lambda: host.folder("output_dir", output_dir)),
        *run_check("cache_dir", lambda: host.folder("cache_dir", cache)),
        *run_check("host name", lambda: host.names(nodes)),
        *run_check("limits", host.limits),
    ]


def merged(by_rank: list[tuple[str, list[Finding]]]) -> list[Finding]:
    """Rank 0's findings, and what other hosts found otherwise that is not green, with their names."""
    first_host, first = by_rank[0]
    findings = list(first)
    levels = {(finding.check, finding.level) for finding in first}
    for name, theirs in by_rank[1:]:
        for finding in theirs:
            same_as_rank_0 = name == first_host and (finding.check, finding.level) in levels
            named = replace(finding, check=f"{finding.check} ({name})")
            if finding.level != "green" and not same_as_rank_0 and named not in findings:
                findings.append(named)
    return findings
