"""The help pages."""

from __future__ import annotations

from pal_dist.cli import VERBS
from pal_dist.commands.help import HELP_WIDTH, overview, verb_page
from pal_dist.commands.verb import Verb
from pal_dist.config.resolve import names_where, settings


def example() -> None:
    """Do nothing.

    The overview shows the first line alone.
    """


def test_overview() -> None:
    lines = overview({"example": Verb(example), "a": Verb(example)}).splitlines()
    assert "  example  Do nothing." in lines
    assert "  a        Do nothing." in lines
    assert not any("first line alone" in line for line in lines)


def test_a_page_has_options_and_notes() -> None:
    page = verb_page("example", Verb(example, options={"gpu": "Kind of GPU."}, notes="Exit code 3: does not fit."))
    assert page.splitlines()[0] == "pal-dist example: Do nothing."
    assert page.splitlines()[-4:] == ["  --gpu", "      Kind of GPU.", "", "Exit code 3: does not fit."]


def test_settings_with_type_default_and_meaning() -> None:
    page = verb_page("example", Verb(example, settings="run"))
    for setting in settings().values():
        assert f"\n  --{setting.name} " in page
        assert setting.help.split()[0] in page
    assert "  --tasks text,...   (default: sst,para,sts)" in page
    assert f"  --{', --'.join(names_where(for_saved_model=True))}" in verb_page(
        "a", Verb(example, settings="saved_model")
    )


def test_help_texts_are_wrapped() -> None:
    for name, verb in VERBS.items():
        texts = [line for line in verb_page(name, verb).splitlines() if line.startswith(" " * 6)]
        assert max(map(len, texts), default=0) <= HELP_WIDTH
