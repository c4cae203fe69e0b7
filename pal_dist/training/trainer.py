"""The loop, and nothing but the loop."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict
from itertools import combinations, zip_longest

import torch
from torch import Tensor

from pal_dist.core.errors import StoppedError
from pal_dist.data.batching import StepRows
from pal_dist.monitoring import run_files
from pal_dist.optim.gradient_surgery import GradientSurgery
from pal_dist.optim.optimizers import learning_rate_factor
from pal_dist.optim.task_weighting import task_weights_of
from pal_dist.training.agreement import describe_examples, describe_step, step_fingerprint
from pal_dist.training.batch_loader import BatchLoader
from pal_dist.training.best_model import BestModel
from pal_dist.training.checkpoint import save_checkpoint
from pal_dist.training.dev_metrics import dev_metrics
from pal_dist.training.log_window import LogWindow, MicroBatchResult
from pal_dist.training.micro_batch_pass import MicroBatchPass
from pal_dist.training.pass_graphs import pass_graphs
from pal_dist.training.preemption import STOP, Preemption
from pal_dist.training.run import Run
from pal_dist.training.run_state import RunState


class Trainer:
    """Runs a run's optimizer steps one after the other; evaluates, keeps the best model, saves, stops when asked."""

    def __init__(self, run: Run):
        config, engine = run.config, run.engine
        self.run, self.config, self.engine, self.state = run, config, engine, run.state
        self.guard = run.guard
        labels = [corpus.labels for corpus in run.corpora.train.values()]
        self.task_weights = task_weights_of(config.balance.weighting, run.tasks, labels)
        self.run_pass = MicroBatchPass(run)
        self.graphs = pass_graphs(run, self.run_pass)
        self.surgery: GradientSurgery | None = None
        if config.balance.conflict != "none":
            self.surgery = GradientSurgery(config.balance.conflict, len(run.tasks), config.train.seed)
            self.surgery.load_state_dict(self.state.conflict)
            engine.separate_task_gradients(len(run.tasks))
        self.log_window = LogWindow(run)
        self.loader = BatchLoader(run)
        self.best_model = BestModel(run)
        self.preemption = Preemption(run.folder, config.train.save_every)
        self.gradient_norm = torch.zeros(())

    def fit(self) -> RunState:
        """Train from the state's step to the end; returns the final state."""
        if not self.state.finished:
            self.engine.model.train()
            self.log_window.start_clock()
            with self.engine.group.explain_lost_ranks(), self.loader:
                for step_rows in self.loader.steps(self.state.step, self.run.total_steps):
                    self.save_or_stop_if_asked(step_rows)
                    self.gradient_norm = self.step(step_rows)
                    self.state.step += 1
                    self.log_evaluate_and_save_if_due()
                    if self.state.finished:
                        break
            if self.graphs is not None:
                self.run.report.say(self.graphs.summary())
        return self.state

    def step(self, step_rows: StepRows) -> Tensor:
        """One optimizer step: every micro-batch of this rank, then one update. Returns the gradient norm.

        Each example's loss is divided by the step's number of examples over all tasks and ranks, so neither the cut
        into micro-batches nor the ranks change the gradient.
        """
        lengths, options = self.run.schedule.lengths, self.config.optimizer
        longest = max(int(lengths[task][rows].max()) for task, rows in step_rows)
        for result in self.guard.retry_on_oom(lambda: list(self.accumulate(step_rows)), longest=longest):
            self.log_window.add(result)
        rate = self.run.peak_rate * learning_rate_factor(
            self.state.step, self.run.total_steps, options.warmup, options.schedule
        )
        return self.guard.stop_on_oom(lambda: self.update(rate))

    def accumulate(self, step_rows: StepRows) -> Iterator[MicroBatchResult]:
        """Gradients of this rank's micro-batches. Nothing here waits for another rank or outlives a failure."""
        examples = {task: len(rows) for task, rows in step_rows}
        total = sum(examples.values())
        weights = self.task_weights.factors(examples)
        self.engine.set_seed(self.config.train.seed, self.state.step)
        self.engine.checkpoint_layers(self.state.checkpoint_layers)
        self.engine.set_progress(self.state.step / self.run.total_steps)
        loaded = self.loader.micro_batches(step_rows)
        for (micro, on_host), following in zip_longest(loaded, loaded[1:]):
            on_host.set_factors([weights[task] / total for task, _ in micro.parts])
            task = micro.parts[-1][0]
            ends_task = task if following is None or following[0].parts[0][0] != task else None
            if self.graphs is not None:
                losses_S = self.graphs(on_host)
            else:
                losses_S = self.run_pass(self.engine.to_device(on_host), last=following is None, task=ends_task)
            yield MicroBatchResult(on_host, losses_S)

    def update(self, rate: float) -> Tensor:
        """Conflicts resolved, gradients summed over the ranks, clipped, applied. Returns the norm before clipping."""
        if self.surgery is not None:
            self.engine.apply_surgery(self.surgery, self.state.step)
        return self.engine.step(rate=rate, max_norm=self.config.optimizer.max_gradient_norm)

    def save_or_stop_if_asked(self, step_rows: StepRows) -> None:
        """All ranks agree that they are about to run the same step, and on what one of them was asked for before it.

        Raises UserError, on every rank, where the steps differ (law 9), and StoppedError after saving where one rank
        was asked to stop.
        """
        run, step = self.run, self.state.step + 1
        self.engine.group.report_progress(f"in step {step} ({describe_examples(run, step_rows)})")
        request = self.engine.group.agree(
            step_fingerprint(run, step_rows), self.preemption.request(), lambda: describe_step(run, step_rows)
        )
        if request:
            self.save()
        if request == STOP:
            self.preemption.acknowledge()
            raise StoppedError(
                f"stopped before step {step:,}, as asked ({self.preemption.reason or 'on another rank'}); the "
                f"checkpoint in {run.folder / run_files.CHECKPOINTS} is whole: run the same command again to resume"
            )

    def log_evaluate_and_save_if_due(self) -> None:
        step, train = self.state.step, self.config.train
        last = step == self.run.total_steps
        every = train.steps_between_evaluations(self.run.schedule.sampling.steps_per_epoch)
        evaluation_due = last or (every > 0 and step % every == 0)
        if evaluation_due or step % train.log_every == 0:
            self.log()
        if evaluation_due:
            self.evaluate()
            self.state.finished = last or self.out_of_patience
        if evaluation_due or self.preemption.save_due(step):
            self.save()

    def log(self) -> None:
        entry = self.log_window.entry(self.gradient_norm)
        if self.surgery is not None and self.surgery.cosines_TT is not None:
            names = [task.name for task in self.run.tasks]
            cosines = self.surgery.cosines_TT.tolist()
            pairs = combinations(enumerate(names), 2)
            entry["task_cosines"] = {f"{one}-{other}": cosines[row][column] for (row, one), (column, other) in pairs}
            self.run.report.cosines(self.state.step, names, cosines)
        self.run.report.progress(self.state.step, self.run.total_steps, entry)

    def evaluate(self) -> None:
        """Dev metrics of every task; the best model is kept."""
        self.log_window.stop_clock()
        begun = time.perf_counter()
        self.run.report.set_state("evaluating", self.state.step)
        metrics = dev_metrics(self.run)
        self.engine.model.train()
        self.best_model.update(metrics)
        self.state.evaluation_seconds += time.perf_counter() - begun
        self.log_window.start_clock()

    @property
    def out_of_patience(self) -> bool:
        patience = self.config.train.patience
        return patience is not None and self.state.evaluations_without_better >= patience

    def save(self) -> None:
        """Everything on disk that the run needs to be resumed from here."""
        if self.log_window.examples:
            self.log()
        else:
            self.log_window.stop_clock()
        self.engine.group.report_progress(f"saving after step {self.state.step}")
        self.run.report.set_state("saving", self.state.step)
        self.state.conflict = {} if self.surgery is None else self.surgery.state_dict()
        folder = self.run.folder / run_files.CHECKPOINTS
        save_checkpoint(folder, self.engine, asdict(self.state), keep=self.config.train.keep_checkpoints)
        self.preemption.saved()
        self.log_window.start_clock()
