"""Which tasks an optimizer step serves, and how many examples of each: a pure function of (seed, step).

Sources: round robin and annealed sampling are those of Stickland & Murray 2019 (PAL), section 4: the chance of task i
is proportional to N_i ** alpha, where N_i counts EXAMPLES, and annealed uses alpha = 1 - 0.8 (e - 1) / (E - 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pal_dist.config.schema import RunConfig
from pal_dist.core.units import ceil_div


@dataclass(frozen=True)
class Sampling:
    """Counts of examples per task for every step. Nothing is drawn in order, so any step can be asked for."""

    kind: str
    """round_robin, random, proportional, sqrt or annealed."""
    sizes: tuple[int, ...]
    """Training examples of each task."""
    batch_size: int
    """Examples of one task in one step; a task-complete step serves `batch_size * len(sizes)` examples in all."""
    step_tasks: str = "all"
    """all: every step serves every task; one: one task per step."""
    epochs: int = 1
    """E of the annealing formula."""
    seed: int = 0
    epoch_steps: int | None = None
    """Steps of one epoch; None: see `steps_per_epoch`."""

    @classmethod
    def of_run(cls, config: RunConfig, sizes: Sequence[int]) -> Sampling:
        """A run's sampling, for tasks of these sizes."""
        return cls(
            kind=config.batch.sampling,
            sizes=tuple(sizes),
            batch_size=config.batch.batch_size,
            step_tasks=config.batch.step_tasks,
            epochs=config.train.epochs,
            seed=config.train.seed,
            epoch_steps=config.batch.steps_per_epoch,
        )

    @property
    def examples_per_step(self) -> int:
        return self.batch_size * (len(self.sizes) if self.step_tasks == "all" else 1)

    @property
    def steps_per_epoch(self) -> int:
        """Steps that serve as many examples as the training files hold together, unless their number is given."""
        return self.epoch_steps or ceil_div(sum(self.sizes), self.examples_per_step)

    def alpha(self, step: int) -> float:
        """Exponent on the number of examples at a step (counted from 0)."""
        epoch = min(step // self.steps_per_epoch, self.epochs - 1)
        annealed = 1 - 0.8 * epoch / max(self.epochs - 1, 1)  # one epoch: the formula's start, alpha 1
        return {"round_robin": 0.0, "random": 0.0, "proportional": 1.0, "sqrt": 0.5, "annealed": annealed}[self.kind]

    def chances(self, step: int) -> NDArray[np.float64]:
        """Chance of each task at a step, shape (tasks,), summing to 1."""
        weights = np.asarray(self.sizes, dtype=np.float64) ** self.alpha(step)
        return np.asarray(weights / weights.sum())

    def counts(self, step: int) -> NDArray[np.int64]:
        """Examples of each task that the step asks for, shape (tasks,). In task-complete steps none is 0."""
        tasks = len(self.sizes)
        if self.step_tasks == "one":
            if self.kind == "round_robin":
                task = step % tasks
            else:
                task = int(np.random.default_rng([self.seed, step]).choice(tasks, p=self.chances(step)))
            return np.where(np.arange(tasks) == task, self.batch_size, 0)
        spare = self.examples_per_step - tasks  # every task has one for certain
        if self.kind == "random":
            return 1 + np.random.default_rng([self.seed, step]).multinomial(spare, self.chances(step))
        return _apportion(self.examples_per_step, self.chances(step))

    @property
    def most_rows(self) -> tuple[int, ...]:
        """The most examples of each task that any step of the run can serve, over all ranks.

        Under random sampling hardly any run meets it; under the others some step does, where passes are long enough.
        """
        tasks = len(self.sizes)
        if self.step_tasks == "one":
            largest = np.full(tasks, self.batch_size)
        elif self.kind == "random":  # every task has one for certain, and one of them may be drawn each time
            largest = np.full(tasks, self.examples_per_step - (tasks - 1))
        else:  # the same throughout an epoch
            epochs = self.epochs if self.kind == "annealed" else 1
            largest = np.max([self.counts(epoch * self.steps_per_epoch) for epoch in range(epochs)], axis=0)
        return tuple(np.minimum(largest, self.sizes).tolist())  # a step never reaches over the end of a pass

    def describe_epoch(self, names: tuple[str, ...]) -> str:
        """One sentence that says what an epoch is here."""
        counted_steps = min(self.steps_per_epoch, 1000)  # an epoch of millions of steps is like its beginning
        examples = sum((self.counts(step) for step in range(counted_steps)), np.zeros(len(names), np.int64))
        passes_by_task = examples * self.steps_per_epoch / counted_steps / np.array(self.sizes)
        passes = ", ".join(f"{name} {count:.2f}" for name, count in zip(names, passes_by_task, strict=True))
        why = f"that serve as many examples as the training files hold together ({sum(self.sizes):,})"
        if self.epoch_steps:
            why = f"as given ({self.epoch_steps * self.examples_per_step:,} examples)"
        return (
            f"one epoch = {self.steps_per_epoch:,} optimizer steps {why}; under {self.kind} sampling the first one "
            f"passes over: {passes}"
        )


def _apportion(total: int, chances: NDArray[np.float64]) -> NDArray[np.int64]:
    """Split `total` by the chances with largest remainders, at least one each (so `total >= len(chances)`)."""
    exact = 1 + (total - len(chances)) * chances
    counts = np.floor(exact).astype(np.int64)
    for index in np.argsort(counts - exact, kind="stable")[: total - int(counts.sum())]:
        counts[index] += 1
    return counts
