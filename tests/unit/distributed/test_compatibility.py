"""Each rule of what settings and strategy cannot do together, and what it proposes."""

from __future__ import annotations

import pytest

from pal_dist.config.resolve import resolve
from pal_dist.config.schema import RunConfig
from pal_dist.core.errors import UserError
from pal_dist.distributed.compatibility import RULES, check_compatible, incompatibilities
from pal_dist.distributed.strategy import read_strategy, strategy_names

BROKEN = {
    "idle_tasks_stay_unchanged": ({"step_tasks": "one"}, "--step_tasks one under {}: it feeds zeros"),
    "sleeping_adapters_stay_unchanged": (
        {"adapter": "progressive_pal"},
        "--adapter progressive_pal under {}: it feeds zeros",
    ),
    "optimizer_suits_strategy": (
        {"optimizer": "paged_adamw_8bit"},
        "--optimizer paged_adamw_8bit under {}: its 8-bit blocks",
    ),
}


def run_of(**flags: object) -> RunConfig:
    return resolve(flags)[0]


def test_every_rule_has_an_example() -> None:
    assert [rule.__name__ for rule in RULES] == list(BROKEN)


@pytest.mark.parametrize("name", strategy_names())
def test_rules(name: str) -> None:
    strategy = read_strategy(name)
    shares_out = strategy.kind != "replicated"
    assert not incompatibilities(run_of(), strategy)
    for rule in RULES:
        flags, words = BROKEN[rule.__name__]
        problem = rule(run_of(**flags), strategy)
        assert (problem is not None) == shares_out
        if problem is not None:
            assert problem.startswith(words.format(name))
            assert "--strategy ddp" in problem
            assert incompatibilities(run_of(**flags), strategy) == [problem]


def test_all_problems_are_said_at_once() -> None:
    flags = {key: value for broken, _ in BROKEN.values() for key, value in broken.items()}
    with pytest.raises(UserError) as refused:
        check_compatible(run_of(**flags), read_strategy("fsdp2"))
    assert len(str(refused.value).splitlines()) == len(RULES)


def test_optimizers_of_strategies() -> None:
    assert read_strategy("ddp").optimizers == ("adamw", "adamw_8bit", "paged_adamw_8bit")
    assert read_strategy("zero1").optimizers == read_strategy("fsdp2").optimizers == ("adamw",)
