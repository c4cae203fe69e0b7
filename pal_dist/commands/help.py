"""The help pages, from the table of verbs and the table of settings."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

from pal_dist.commands.options import RUN_OPTIONS
from pal_dist.commands.verb import Verb
from pal_dist.config.resolve import describe, format_value, names_where, settings

HELP_WIDTH = 106


def overview(verbs: Mapping[str, Verb]) -> str:
    """Every verb with the first line of its help."""
    width = max(map(len, verbs))
    return "\n".join(
        [
            "pal-dist VERB [--setting value ...]",
            "",
            *(f"  {name.ljust(width)}  {verb.help.splitlines()[0]}" for name, verb in verbs.items()),
            "",
            "pal-dist VERB --help shows a verb's settings.",
        ]
    )


def verb_page(name: str, verb: Verb) -> str:
    """What a verb does and all that it takes."""
    lines = [f"pal-dist {name}: {verb.help}"]
    if verb.options:
        lines += ["", *_option_lines(verb.options)]
    if verb.notes:
        lines += ["", *textwrap.wrap(verb.notes, HELP_WIDTH)]
    if verb.settings == "run":
        lines += ["", *_option_lines(RUN_OPTIONS)]
        for setting in settings().values():
            lines.append(f"  --{setting.name} {describe(setting.kind)}   (default: {format_value(setting.default)})")
            lines += _indented(setting.help)
    if verb.settings == "saved_model":
        lines.append(f"  --{', --'.join(names_where(for_saved_model=True))}")
        lines += _indented("As for train; by default those of the run.")
    return "\n".join(lines)


def _option_lines(options: Mapping[str, str]) -> list[str]:
    return [line for name, text in options.items() for line in (f"  --{name}", *_indented(text))]


def _indented(text: str) -> list[str]:
    return textwrap.wrap(text, HELP_WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
