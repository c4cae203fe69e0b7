"""Rules that a run's values keep among themselves: each is told with its cure, all at once."""

from __future__ import annotations

from typing import Any

import pytest

from pal_dist.config import checks
from pal_dist.config.checks import RULES
from pal_dist.config.resolve import resolve
from pal_dist.core.errors import UserError

BROKEN = [
    ({"dropout": "1"}, "--dropout is a probability, from 0 up to but not including 1; found 1.0"),
    ({"warmup": "3"}, "--warmup is a share of all steps, from 0 to 1; found 3.0"),
    (
        {"tokens_per_micro_batch": "64"},
        "--tokens_per_micro_batch 64 cannot hold one sequence of --max_length 128: raise the first or lower the second",
    ),
    ({"checkpoint_layers": "-1"}, "--checkpoint_layers is 0 (none), 1 (all) or more; found -1"),
    ({"evaluate_every": "often"}, "--evaluate_every takes a number of steps, `epoch` or `none`; found 'often'"),
    ({"save_every": "15h"}, "--save_every takes a number of steps, minutes (15m), or `evaluation`; found '15h'"),
    (
        {"evaluate_every": "none", "patience": "1"},
        "--patience counts evaluations, and --evaluate_every none makes none: drop one of them",
    ),
    ({"keep_best": "parts"}, "--keep_best parts needs --mode pretrain: where the encoder is trained"),
    ({"batch_size": "0"}, "--batch_size is too small: it must be at least 1"),
    ({"max_length": "2"}, "--max_length is too small: it must be at least 3"),
    ({"max_steps": "0"}, "--max_steps must be at least 1, or none; found 0"),
    ({"learning_rate": "-1"}, "--learning_rate must be above 0; found -1.0"),
    ({"learning_rate": "nan"}, "--learning_rate must be above 0; found nan"),
    ({"hang_minutes": "0"}, "--hang_minutes must be above 0; found 0.0"),
    ({"weight_decay": "-0.1"}, "--weight_decay must not be negative; found -0.1"),
    ({"tasks": ""}, "--tasks is empty: name at least one task (`pal-dist tasks` lists them)"),
    (
        {"conflict": "pcgrad", "tasks": "sst"},
        "--conflict pcgrad needs several tasks' gradients of one encoder, but --tasks names 1: name two at least",
    ),
    ({"conflict": "gradvac", "step_tasks": "one"}, "but --step_tasks one serves one task a step: use --step_tasks all"),
    ({"conflict": "watch", "mode": "pretrain"}, "but --mode pretrain trains no parameter that tasks share"),
]


@pytest.mark.parametrize(("flags", "says"), BROKEN)
def test_a_broken_rule_is_told(flags: dict[str, str], says: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve(flags)
    assert says in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_all_at_once() -> None:
    with pytest.raises(UserError) as caught:
        resolve({"dropout": "1", "batch_size": "0", "tasks": "", "save_every": "x"})
    assert len(str(caught.value).splitlines()) == 4


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_no_rule_is_untried(rule: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it, one of the cases above would be no mistake."""
    monkeypatch.setattr(checks, "RULES", tuple(other for other in RULES if other is not rule))
    for flags, _ in BROKEN:
        try:
            resolve(flags)
        except UserError:
            continue
        return
    pytest.fail(f"no case breaks {rule.__name__} alone")
