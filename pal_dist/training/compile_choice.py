"""Whether a run's layers are compiled: as asked, or where its steps repay what compiling takes."""

from __future__ import annotations

import torch

from pal_dist.config.schema import RunConfig
from pal_dist.core.console import duration
from pal_dist.core.errors import UserError
from pal_dist.distributed.engine import Engine
from pal_dist.distributed.hardware import named_compiler
from pal_dist.memory.planner import PlannedRun
from pal_dist.models.encoder import ACTIVATION_FUNCTIONS
from pal_dist.models.multi_task import MultiTaskBert
from pal_dist.models.regions import compiled, problem_of_compiled, why_not_compiled

GAIN = 0.05
"""Estimate: share of a step that compiled layers save. What one H100 showed for a compiled layer of BERT-base (96 rows
of 32 tokens, kernel by kernel); with graphs and for large steps it is not measured."""

SECONDS = 20.0
"""Estimate: what compiling forward and backward takes; it took 10 s on that H100 and 22 s on two processors."""

REPAID = 3.0
"""Times that a run has to save what compiling takes, since both are estimates."""


def use_compiled_layers(
    config: RunConfig, model: MultiTaskBert, engine: Engine, planned: PlannedRun | None, *, steps: int
) -> list[str]:
    """Have the model's layers compiled, or not; what is to be said of it. Every rank decides alike.

    Args:
        steps: that the run has still to do.

    Raises UserError where `--compile on` cannot be.
    """
    asked = config.train.compile
    if asked == "off":
        return []
    if asked == "auto":
        if engine.device.type != "cuda" or planned is None:
            return []
        saved = GAIN * steps * planned.plan.seconds
        arithmetic = (
            f"estimated to save {GAIN:.0%} of {steps:,} steps of {planned.plan.seconds:.3g} s = {duration(saved)}, and "
            f"to take about {duration(SECONDS)}"
        )
        if saved < REPAID * SECONDS:
            return [f"compile: off; {arithmetic}"]
    problem = _problem(model, engine)
    if problem and asked == "on":
        raise UserError(f"--compile on: {problem}; leave it out or use --compile off")
    if problem:
        return [f"compile: off, though {arithmetic}: {problem}"]
    model.use_regions(compiled())
    return [f"compile: on; {arithmetic}" if asked == "auto" else "compile: on, as asked"]


def _problem(model: MultiTaskBert, engine: Engine) -> str:
    """What forbids compiled layers on some rank; empty: nothing."""
    if engine.strategy.shares_parameters:
        return f"under {engine.strategy.name} parameters are whole only while their layer runs"
    problem = why_not_compiled(engine.device, named_compiler())
    if not problem:
        dtypes = {engine.precision.dtype, torch.float32}
        activation = ACTIVATION_FUNCTIONS[model.config.hidden_act]
        problems = (problem_of_compiled(engine.device, dtype, activation) for dtype in sorted(dtypes, key=str))
        problem = next(filter(None, problems), "")
    return next(filter(None, engine.gather(problem)), "")
