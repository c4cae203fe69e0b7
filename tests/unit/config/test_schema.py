"""What a setting is good for is said at its field, and nowhere else."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from pal_dist.config.resolve import names_where, settings
from pal_dist.config.schema import DEFAULT_TOKEN_BUDGET, MemoryConfig, RunConfig, SettingUse

USES = {
    "resumable": {
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
        "attention",
        "cuda_graphs",
        "compile",
        "keep_checkpoints",
    },
    "same_group": {
        "seed",
        "output_dir",
        "cache_dir",
        "data_dir",
        "resume",
        "log_every",
        "save_every",
        "keep_checkpoints",
        "hang_minutes",
        "cuda_graphs",
        "compile",
    },
    "per_node": {"cache_dir", "data_dir", "output_dir"},
    "for_saved_model": {
        "data_dir",
        "cache_dir",
        "max_length",
        "max_characters",
        "bad_rows",
        "precision",
        "tokens_per_micro_batch",
    },
    "makes_corpus": {"max_length", "max_characters", "bad_rows"},
}
"""Frozen: whoever adds a setting, or a use, decides here too."""


def test_every_use_is_frozen_here() -> None:
    assert USES.keys() == {use.name for use in fields(SettingUse)}


@pytest.mark.parametrize("use", USES)
def test_settings_of_a_use(use: str) -> None:
    assert set(names_where(**{use: True})) == USES[use]
    assert set(names_where(**{use: False})) == settings().keys() - USES[use]


def test_uses_agree_with_one_another() -> None:
    """What makes other tokens makes another run, and another group of a comparison."""
    assert names_where(makes_corpus=True, resumable=True) == ()
    assert names_where(makes_corpus=True, same_group=True) == ()
    assert names_where(makes_corpus=True, per_node=True) == ()


def test_the_token_budget_is_what_was_asked_else_the_default() -> None:
    assert MemoryConfig().token_budget == DEFAULT_TOKEN_BUDGET
    assert MemoryConfig(tokens_per_micro_batch=160).token_budget == 160
    assert f" {DEFAULT_TOKEN_BUDGET} with `memory: off`" in settings()["tokens_per_micro_batch"].help


def test_evaluations_in_steps() -> None:
    train = RunConfig().train
    for every, steps in {"epoch": 70, "none": 0, "25": 25}.items():
        assert replace(train, evaluate_every=every).steps_between_evaluations(70) == steps
