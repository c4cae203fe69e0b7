"""Everything beside parameters and optimizer that a run needs to be resumed; a checkpoint's state.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pal_dist.config.schema import DEFAULT_TOKEN_BUDGET


@dataclass
class RunState:
    """Plain values, written as JSON."""

    step: int = 0
    """Optimizer steps done."""
    best_mean: float | None = None
    best_step: int = 0
    best_metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    """All dev metrics at the best mean."""
    best_each: dict[str, dict[str, float]] = field(default_factory=dict)
    """Each task's best headline metric: {task: {"step", "value"}}."""
    evaluations_without_better: int = 0
    examples: int = 0
    tokens: int = 0
    """Tokens that went through the model, over all ranks (likewise examples, useful_tokens); with cached features,
    those of the texts that they stand for."""
    useful_tokens: int = 0
    seconds: float = 0.0
    """Time spent training; evaluation and saving are not in it."""
    evaluation_seconds: float = 0.0
    finished: bool = False
    tokens_per_micro_batch: int = DEFAULT_TOKEN_BUDGET
    """The run's token budget: the plan's, until the guard makes it smaller."""
    planned_for: str = ""
    """Ranks and device that the budget is for."""
    checkpoint_layers: int = 0
    """Every how many encoder layers one is computed again in backward."""
    batch_lengths: str = "alike"
    """What makes a batch, as the run began (`BatchConfig.batch_lengths`); runs of before had this."""
    conflict: dict[str, Any] = field(default_factory=dict)
    """What the method against gradient conflict remembers from step to step."""

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> RunState:
        """The state as a checkpoint has it, one of an older version too, whose further entries are of no use any more.

        JSON has no NaN: a best score that is null is one that was no number.
        """
        state = cls(**{name: value for name, value in values.items() if name in cls.__dataclass_fields__})
        if state.best_step and state.best_mean is None:
            state.best_mean = math.nan
        for scores in (*state.best_metrics.values(), *state.best_each.values()):
            scores.update({name: math.nan for name, value in scores.items() if value is None})
        return state

    def update_bests(self, headline: Mapping[str, float]) -> list[str]:
        """Tasks that are better than ever, by their headline metric, which is now their best."""
        improved = [
            task for task, value in headline.items() if is_better(value, self.best_each.get(task, {}).get("value"))
        ]
        self.best_each |= {task: {"step": self.step, "value": headline[task]} for task in improved}
        return improved

    def mean_of_bests(self) -> float:
        """Mean of the tasks' best headline metrics, of whatever steps; NaN where there is none."""
        values = [best["value"] for best in self.best_each.values()]
        return sum(values) / len(values) if values else math.nan


def is_better(value: float, best: float | None) -> bool:
    """NaN (a constant prediction has no correlation) is never better; the first is kept whatever it scores."""
    return best is None or value > best or (math.isnan(best) and not math.isnan(value))
