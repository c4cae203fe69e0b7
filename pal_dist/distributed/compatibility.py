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


def idle_tasks_stay_unchanged(config: RunConfig, strategy: Strategy) -> str | None:
    """Law 2: a task that a step does not serve keeps its parameters and moments."""
    if strategy.kind == "replicated" or config.batch.step_tasks != "one":
        return None
    return (
        f"--step_tasks one under {strategy.name}: it feeds zeros to the tasks that a step does not serve, so AdamW's "
        f"momentum and decay still move them; use --step_tasks all, or --strategy ddp"
    )


def sleeping_adapters_stay_unchanged(config: RunConfig, strategy: Strategy) -> str | None:
    """The same for parts of an adapter that wake during the run."""
    if strategy.kind == "replicated" or not Adapter.registry[config.model.adapter].trains_parts_later:
        return None
    return (
        f"--adapter {config.model.adapter} under {strategy.name}: it feeds zeros to what is still asleep, so weight "
        f"decay moves it and its moments start with a wrong count; use --strategy ddp"
    )


def optimizer_suits_strategy(config: RunConfig, strategy: Strategy) -> str | None:
    """`Strategy.optimizers` says which optimizers there are, and why."""
    if config.optimizer.optimizer in strategy.optimizers:
        return None
    return (
        f"--optimizer {config.optimizer.optimizer} under {strategy.name}: its 8-bit blocks would straddle parameters "
        f"and embeddings would lose their 32 bits; use --optimizer adamw, or --strategy ddp"
    )


def why_no_graphs(config: RunConfig, strategy: Strategy) -> str:
    """Why a micro-batch of this run cannot be replayed as a CUDA graph, on any device; empty: it can."""
    reasons = {
        "--cuda_graphs off": config.train.cuda_graphs == "off",
        f"under {strategy.name} ranks exchange parameters or gradients within a micro-batch": (
            strategy.kind != "replicated"
        ),
        f"--conflict {config.balance.conflict} keeps the tasks' gradients apart": config.balance.conflict != "none",
        "--step_tasks one serves another task in each step": config.batch.step_tasks == "one",
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


RULES: tuple[Rule, ...] = (
    idle_tasks_stay_unchanged,
    sleeping_adapters_stay_unchanged,
    optimizer_suits_strategy,
)


def incompatibilities(config: RunConfig, strategy: Strategy) -> list[str]:
    """What each broken rule says; empty where the run can be trained under the strategy."""
    return [problem for rule in RULES if (problem := rule(config, strategy)) is not None]


def check_compatible(config: RunConfig, strategy: Strategy) -> None:
    """Raises UserError for combinations known to be wrong, with what to do instead."""
    if problems := incompatibilities(config, strategy):
        raise UserError("\n".join(problems))
