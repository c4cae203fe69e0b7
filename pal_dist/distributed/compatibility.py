"""What a run's settings and its strategy cannot do together. `train` refuses it, the planner does not name it.

A rule is a function of both that returns what is wrong and what to do instead, or None.
"""

from __future__ import annotations

from collections.abc import Callable

from pal_dist.config.schema import RunConfig
from pal_dist.core.errors import UserError
from pal_dist.distributed.strategy import Strategy
from pal_dist.models.adapters import Adapter

Rule = Callable[[RunConfig, Strategy], str | None]


def idle_tasks_stay_unchanged(run: RunConfig, strategy: Strategy) -> str | None:
    """Law 2: a task that a step does not serve keeps its parameters and moments."""
    if strategy.kind == "replicated" or run.batch.step_tasks != "one":
        return None
    return (
        f"--step_tasks one under {strategy.name}: it feeds zeros to the tasks that a step does not serve, so AdamW's "
        f"momentum and decay still move them; use --step_tasks all, or --strategy ddp"
    )


def sleeping_adapters_stay_unchanged(run: RunConfig, strategy: Strategy) -> str | None:
    """The same for parts of an adapter that wake during the run."""
    if strategy.kind == "replicated" or not Adapter.registry[run.model.adapter].trains_parts_later:
        return None
    return (
        f"--adapter {run.model.adapter} under {strategy.name}: it feeds zeros to what is still asleep, so weight decay "
        f"moves it and its moments start with a wrong count; use --strategy ddp"
    )


def optimizer_suits_strategy(run: RunConfig, strategy: Strategy) -> str | None:
    """`Strategy.optimizers` says which optimizers there are, and why."""
    if run.optimizer.optimizer in strategy.optimizers:
        return None
    return (
        f"--optimizer {run.optimizer.optimizer} under {strategy.name}: its 8-bit blocks would straddle parameters and "
        f"embeddings would lose their 32 bits; use --optimizer adamw, or --strategy ddp"
    )


RULES: tuple[Rule, ...] = (
    idle_tasks_stay_unchanged,
    sleeping_adapters_stay_unchanged,
    optimizer_suits_strategy,
)


def incompatibilities(run: RunConfig, strategy: Strategy) -> list[str]:
    """What each broken rule says; empty where the run can be trained under the strategy."""
    return [problem for rule in RULES if (problem := rule(run, strategy)) is not None]


def check_compatible(run: RunConfig, strategy: Strategy) -> None:
    """Raises UserError for combinations known to be wrong, with what to do instead."""
    if problems := incompatibilities(run, strategy):
        raise UserError("\n".join(problems))
