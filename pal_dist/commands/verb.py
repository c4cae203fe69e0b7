"""What a verb of the command line is: what does it, and which arguments it takes, for its help page and for parsing."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from pal_dist.commands.options import RUN_OPTIONS
from pal_dist.config.resolve import names_where, settings
from pal_dist.core.errors import UserError
from pal_dist.core.suggest import did_you_mean


@dataclass(frozen=True)
class Verb:
    """A row of the table of verbs."""

    function: Callable[..., int | None]
    """Takes positional arguments and flags, all as text; returns the exit code. Its docstring is the verb's help."""
    positionals: int = 0
    """Most positional arguments, those without `--name`."""
    settings: Literal["none", "run", "saved_model"] = "none"
    """Which settings of a run it takes: none, all (and RUN_OPTIONS), or those given anew for a saved model."""
    options: Mapping[str, str] = field(default_factory=dict)
    """What it takes beside those: each option with its help."""
    notes: str = ""
    """What else its help page says."""
    as_typed: bool = False
    """The function takes all arguments as they were typed, and reads them itself."""

    @property
    def help(self) -> str:
        return inspect.getdoc(self.function) or ""

    @property
    def flags(self) -> tuple[str, ...]:
        """Every name that it takes behind a `--`."""
        of_run = {
            "none": (),
            "run": (*RUN_OPTIONS, *settings()),
            "saved_model": names_where(for_saved_model=True),
        }
        return tuple(dict.fromkeys((*self.options, *of_run[self.settings])))


def refuse_others(flags: Iterable[str], names: Iterable[str]) -> None:
    """Raises UserError for the first flag that is not among the names, with the nearest one."""
    allowed = sorted(names)
    for name in flags:
        if name not in allowed:
            hint = did_you_mean(name, allowed, before="--") if allowed else "this verb takes none"
            raise UserError(f"unknown setting --{name}: {hint}")
