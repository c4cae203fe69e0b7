"""A run put together: what the loop, the memory check, the doctor and the summary all work on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from pal_dist.config.schema import RunConfig
from pal_dist.data.batch import Batch, BatchSize, pack_batch
from pal_dist.data.batching import MicroBatch, Schedule, StepRows, micro_batches
from pal_dist.data.fixed_sizes import MOST_TOKENS, size_for
from pal_dist.distributed.engine import Engine
from pal_dist.memory.planner import PlannedRun
from pal_dist.models.multi_task import MultiTaskBert
from pal_dist.monitoring.report import Report
from pal_dist.tasks.objectives import Objective
from pal_dist.tasks.registry import Task
from pal_dist.training.feature_cache import FeatureCache
from pal_dist.training.inputs import Corpora, Inputs
from pal_dist.training.oom_guard import OutOfMemoryGuard
from pal_dist.training.run_state import RunState


@dataclass
class Run:
    """Everything that `set_up` has made, ready for the next step; the same on every rank but for the report."""

    config: RunConfig
    inputs: Inputs
    corpora: Corpora
    engine: Engine
    """Has the model and its optimizer in hand."""
    guard: OutOfMemoryGuard
    schedule: Schedule
    total_steps: int
    peak_rate: float
    """Learning rate at the end of the warm-up."""
    state: RunState
    """What a checkpoint keeps beside parameters and optimizer; changes from step to step."""
    folder: Path
    report: Report
    """Says nothing on ranks other than 0."""
    parameters: dict[str, int]
    """Numbers of parameters: all, trained, shared, and of each task alone."""
    fixes_sizes: bool = False
    """Micro-batches are filled up to few sizes, for which CUDA graphs can be recorded (pass_graphs.py)."""
    plan: PlannedRun | None = None
    """Memory as planned; None where nothing was planned."""
    features: FeatureCache | None = None
    """What the heads of a frozen encoder read, where steps serve that instead of tokens."""
    resumed_from: Path | None = None
    """The checkpoint that the run was resumed from."""

    @property
    def tasks(self) -> tuple[Task, ...]:
        return self.inputs.tasks

    @property
    def model(self) -> MultiTaskBert:
        return self.engine.model

    def micro_batches(self, step_rows: StepRows) -> list[MicroBatch]:
        """What this rank runs through the model in a step that serves these (task, rows)."""
        return micro_batches(
            step_rows,
            self.schedule.lengths,
            budget=self.state.tokens_per_micro_batch,
            rank=self.engine.rank,
            ranks=self.engine.ranks,
            separate_tasks=self.separates_tasks,
            even_tasks=self.fixes_sizes,
        )

    @property
    def separates_tasks(self) -> bool:
        """Whether each micro-batch holds one task's rows: the tasks' gradients are wanted one by one (--conflict)."""
        return self.config.balance.conflict != "none"

    def batch(self, micro: MicroBatch, size: BatchSize | None = None) -> Batch:
        """The micro-batch's tokens and labels, packed, on the CPU.

        Args:
            size: what it is filled up to; None: it is not.
        """
        names = [task.name for task in self.tasks]
        parts = [(names[task], self.corpora.train[names[task]].rows(rows)) for task, rows in micro.parts]
        return pack_batch(parts, size)

    def fixed_size(self, micro: MicroBatch) -> BatchSize | None:
        """What a micro-batch of a step is filled up to, for which a graph can be recorded; None: it is not."""
        if not self.fixes_sizes or self.state.checkpoint_layers:
            return None
        lengths = [self.schedule.lengths[task][rows] for task, rows in micro.parts]
        size = size_for(lengths, max_length=self.config.data.max_length)
        return size if size.tokens <= MOST_TOKENS else None

    def losses(self, batch: Batch) -> list[Tensor]:
        """The summed loss of each segment of a batch on this rank's device: scalars in float32 or wider, with their
        graph."""
        filled = batch.size is not None
        return [
            self.objectives[segment.task].loss(logits, batch.labels_R[segment.rows], has_unlabelled=filled)
            for segment, logits in zip(batch.segments, self.engine.forward(batch), strict=True)
        ]

    def loss_sum(self, batch: Batch) -> Tensor:
        """All of them together."""
        return torch.stack(self.losses(batch)).sum()

    @cached_property
    def objectives(self) -> dict[str, Objective]:
        """What each task is trained for, by its name."""
        return {task.name: task.objective for task in self.tasks}

    def close(self) -> None:
        """Let go of the folder, of the report's files and of the other ranks. Every rank must call it."""
        self.report.close()
        self.engine.close()
