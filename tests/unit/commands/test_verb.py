"""A row of the table of verbs."""

from __future__ import annotations

import pytest

from pal_dist.commands.options import RUN_OPTIONS
from pal_dist.commands.verb import Verb, refuse_others
from pal_dist.config.resolve import names_where, settings
from pal_dist.core.errors import UserError


def example() -> None:
    """Do nothing.

    And no more.
    """


def test_help_is_the_docstring() -> None:
    assert Verb(example).help == "Do nothing.\n\nAnd no more."
    assert Verb(lambda: None).help == ""


def test_flags_are_its_options_and_the_settings_it_takes() -> None:
    assert Verb(example).flags == ()
    assert Verb(example, options={"json": "?"}).flags == ("json",)
    assert Verb(example, settings="saved_model").flags == names_where(for_saved_model=True)
    assert set(Verb(example, settings="run", options={"json": "?"}).flags) == {"json", *RUN_OPTIONS, *settings()}


def test_an_option_with_the_name_of_a_setting_is_there_once() -> None:
    flags = Verb(example, settings="run", options={"data_dir": "?"}).flags
    assert len(flags) == len(set(flags))


def test_others_are_refused_with_the_nearest_name() -> None:
    refuse_others({"split": "dev"}, ["split", "tasks"])
    with pytest.raises(UserError, match=r"unknown setting --spilt: did you mean --split\?"):
        refuse_others({"tasks": "sst", "spilt": "dev"}, ["split", "tasks"])
    with pytest.raises(UserError, match="unknown setting --text: known: --split, --tasks"):
        refuse_others({"text": "dev"}, ["tasks", "split"])
    with pytest.raises(UserError, match="unknown setting --text: this verb takes none"):
        refuse_others({"text": "dev"}, [])
