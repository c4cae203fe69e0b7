"""A run put together: what the loop, the memory check, the doctor and the summary all work on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from pal_dist.config.schema import RunConfig
from pal_dist.data.batch import Batch
from pal_dist.data.batching import MicroBatch, Schedule, StepRows, micro_batches
from pal_dist.distributed.engine import Engine
from pal_dist.memory.planner import PlannedRun
from pal_dist.models.multi_task import MultiTaskBert
from pal_dist.monitoring.report import Report
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
            multiple=self.engine.pad_to_multiple_of,
            cost=self.state.micro_batch_cost,
        )

    def batch(self, micro: MicroBatch) -> Batch:
        """The micro-batch's tokens and labels, on the CPU."""
        name = self.tasks[micro.task].name
        corpus = self.corpora.train[name]
        return corpus.batch(name, micro.rows, padding_id=self.model.padding_id, multiple=self.engine.pad_to_multiple_of)

    def forward(self, micro: MicroBatch) -> tuple[Batch, Tensor]:
        """The micro-batch on this rank's device, and its summed loss: a scalar in float32 or wider, graph included."""
        batch = self.engine.to_device(self.batch(micro))
        return batch, self.tasks[micro.task].objective.loss(self.engine.forward(batch), batch.labels_B)

    def close(self) -> None:
        """Let go of the folder, of the report's files and of the other ranks. Every rank must call it."""
        self.report.close()
        self.engine.close()
