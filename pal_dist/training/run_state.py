"""Everything beside parameters and optimizer that a run needs to be resumed; a checkpoint's state.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pal_dist.config.schema import DEFAULT_TOKEN_BUDGET
from pal_dist.core.errors import UserError
from pal_dist.core.shapes import Count, Score, read_as


@dataclass
class RunState:
    """Plain values, written as JSON."""

    step: Count = 0
    """Optimizer steps done."""
    best_mean: Score | None = None
    best_step: Count = 0
    best_metrics: dict[str, dict[str, Score]] = field(default_factory=dict)
    """All dev metrics at the best mean."""
    best_each: dict[str, dict[str, Score]] = field(default_factory=dict)
    """Each task's best headline metric: {task: {"step", "value"}}."""
    evaluations_without_better: Count = 0
    examples: Count = 0
    tokens: Count = 0
    """Tokens that went through the model, over all ranks (likewise examples, useful_tokens); with cached features,
    those of the texts that they stand for."""
    useful_tokens: Count = 0
    seconds: float = 0.0
    """Time spent training; evaluation and saving are not in it."""
    evaluation_seconds: float = 0.0
    finished: bool = False
    tokens_per_micro_batch: Count = DEFAULT_TOKEN_BUDGET
    """The run's token budget: the plan's, until the guard makes it smaller."""
    planned_for: str = ""
    """Ranks and device that the budget is for."""
    checkpoint_layers: Count = 0
    """Every how many encoder layers one is computed again in backward."""
    batch_lengths: str = "alike"
    """What makes a batch, as the run began (`BatchConfig.batch_lengths`); runs of before had this."""
    conflict: dict[str, list[list[float]]] = field(default_factory=dict)
    """What the method against gradient conflict remembers from step to step."""

    @classmethod
    def from_json(cls, values: dict[str, Any], *, where: str = "state.json") -> RunState:
        """The state as a checkpoint has it, one of an older version too, whose further entries are of no use any more.

        JSON has no NaN: a best score that is null is one that was no number. Raises UserError, naming `where`, for
        values that no run's state has.
        """
        state = read_as(cls, values, where=where)
        if not state.tokens_per_micro_batch:
            raise UserError(f"{where}: `tokens_per_micro_batch` must be at least 1, found 0")
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

    def has_best(self, task: str) -> bool:
        """Whether the task was ever judged by a score that is a number."""
        return task in self.best_each and not math.isnan(self.best_each[task]["value"])

    def mean_of_bests(self) -> float:
        """Mean of the tasks' best headline metrics, of whatever steps; NaN where there is none."""
        values = [best["value"] for task, best in self.best_each.items() if self.has_best(task)]
        return sum(values) / len(values) if values else math.nan


def is_better(value: float, best: float | None) -> bool:
    """NaN (a constant prediction has no correlation) is never better; the first is kept whatever it scores."""
    return best is None or value > best or (math.isnan(best) and not math.isnan(value))
