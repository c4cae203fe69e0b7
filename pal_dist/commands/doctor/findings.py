"""One thing that was looked at, and how it looks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from pal_dist.core.errors import UserError

Level = Literal["green", "yellow", "red"]

LEVELS: tuple[Level, ...] = ("green", "yellow", "red")


@dataclass(frozen=True)
class Finding:
    """green: as it should be. yellow: works, with a drawback. red: a run would fail, or be wrong."""

    check: str
    level: Level
    found: str
    cure: str = ""


def run_check(check: str, function: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """All findings of a check; one that fails is itself a finding, and the others go on."""
    findings: list[Finding] = []
    try:
        findings.extend(function())
    except UserError as error:
        findings.append(Finding(check, "red", str(error), "the message says it"))
    except Exception as error:  # a doctor does not fall ill with the patient
        what = f"{type(error).__name__}: {error}"[:400]
        findings.append(Finding(check, "red", what, "this check itself failed: report it"))
    return findings
