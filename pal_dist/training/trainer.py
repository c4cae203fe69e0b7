"""The loop, and nothing but the loop."""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import combinations, zip_longest
from pathlib import Path
from typing import Any

import torch

from pal_dist.config.schema import UNPLANNED_TOKENS, RunConfig
from pal_dist.core.errors import StoppedError, UserError
from pal_dist.data.batching import MicroBatch, Rows, Schedule, micro_batches
from pal_dist.data.token_cache import Batch, Corpus
from pal_dist.distributed.engine import Engine
from pal_dist.monitoring.report import Report
from pal_dist.optim.gradient_surgery import GradientSurgery
from pal_dist.optim.optimizers import learning_rate_factor
from pal_dist.optim.task_weighting import LEARNED_VARIANCES, LearnedVariances, task_weights_of
from pal_dist.tasks.registry import Task
from pal_dist.training.checkpoint import save_checkpoint
from pal_dist.training.evaluate import predict
from pal_dist.training.oom_guard import OutOfMemoryGuard, say_on_main
from pal_dist.training.preemption import STOP, Preemption
from pal_dist.training.run_state import RunState, is_better

Done = tuple[MicroBatch, int, int, torch.Tensor]
"""A micro-batch that has been through the model: its tokens with padding, those without, its summed loss."""

Save = Callable[[str, dict[str, dict[str, float]], Sequence[str]], None]
"""(name of the folder in the run, metrics, tasks whose parts stay as they are there) -> the model is kept there."""


class Trainer:
    """Runs optimizer steps over a schedule; evaluates, keeps the best, saves."""

    def __init__(
        self, run: RunConfig, engine: Engine, tasks: tuple[Task, ...], train: list[Corpus], dev: dict[str, Corpus], *,
        schedule: Schedule, total_steps: int, peak_rate: float, folder: Path, report: Report, save: Save,
        state: RunState | None = None, padding_id: int = 0, parameters: dict[str, int] | None = None,
    ):  # fmt: skip
        self.run, self.engine, self.tasks, self.train, self.dev = run, engine, tasks, train, dev
        self.schedule, self.total_steps, self.peak_rate = schedule, total_steps, peak_rate
        self.folder, self.report, self.save, self.padding_id = folder, report, save, padding_id
        self.parameters = parameters or {}
        self.state = state or RunState()
        self.task_weights = task_weights_of(run.balance.weighting, tasks, [corpus.labels for corpus in train])
        self.variances: LearnedVariances | None = getattr(engine.model, LEARNED_VARIANCES, None)
        self.surgery: GradientSurgery | None = None
        if run.balance.conflict != "none":
            self.surgery = GradientSurgery(run.balance.conflict, len(tasks), run.train.seed)
            self.surgery.load_state_dict(self.state.conflict)
            engine.separate_task_gradients(len(tasks))
        self.guard = OutOfMemoryGuard(engine, self.state, on_change=say_on_main(engine))
        every = run.train.evaluate_every
        self.evaluate_every = {"epoch": schedule.sampling.steps_per_epoch, "none": 0}.get(every) or (
            int(every) if every.isdigit() else 0
        )
        self.preemption = Preemption(folder, run.train.save_every)
        self.norm = torch.zeros(())
        self._clear_window()

    def fit(self) -> RunState:
        """Train from the state's step to the end; returns the final state."""
        state = self.state
        if state.finished:
            return state
        self.engine.model.train()
        self.started = time.perf_counter()
        with self.engine.group.explain_lost_ranks():
            self._loop()
        return state

    def _loop(self) -> None:
        state = self.state
        for served in self.schedule.steps(state.step, self.total_steps):
            asked = self.agree(served)
            if asked:
                self.checkpoint()
            if asked == STOP:
                self.preemption.granted()
                raise StoppedError(
                    f"stopped before step {state.step + 1:,}, as asked "
                    f"({self.preemption.reason or 'on another rank'}); the checkpoint in "
                    f"{self.folder / 'checkpoints'} is whole, and the same command goes on from it"
                )
            self.norm = self.step(served)
            state.step += 1
            due = self.evaluation_due()
            if due or state.step % self.run.train.log_every == 0:
                self.log()
            if due:
                state.finished = not self.evaluate() or state.step == self.total_steps
            if due or (self.preemption.every_steps and state.step % self.preemption.every_steps == 0):
                self.checkpoint()
            if state.finished:
                break

    def agree(self, served: list[tuple[int, Rows]]) -> int:
        """All ranks are about to run the same step (law 9); what one of them asks for before it: 0, SAVE or STOP."""
        state, engine = self.state, self.engine
        cut = f"{state.step} {state.tokens_per_micro_batch} {state.checkpoint_layers} {self.total_steps}"
        fingerprint = zlib.crc32(cut.encode())
        for task, rows in served:
            fingerprint = zlib.crc32(
                rows.tobytes(), zlib.crc32(self.schedule.lengths[task][rows].tobytes(), fingerprint + task)
            )
        names = ", ".join(f"{len(rows)} {self.tasks[task].name}" for task, rows in served)
        engine.group.progress(f"in step {state.step + 1} ({names})")

        def describe() -> str:
            tokens = sum(int(self.schedule.lengths[task][rows].sum()) for task, rows in served)
            return (
                f"step {state.step + 1} of {self.total_steps}: {names}, {tokens:,} tokens, at most "
                f"{state.tokens_per_micro_batch:,} at once, checkpoint_layers {state.checkpoint_layers}"
            )

        return engine.group.agree(fingerprint, self.preemption.request(), describe)

    def checkpoint(self) -> None:
        """Everything on disk that the run needs to go on from here."""
        if self.counts:
            self.log()
        else:
            self.state.seconds += time.perf_counter() - self.started
        self.engine.group.progress(f"saving after step {self.state.step}")
        self.report.state("saving", self.state.step)
        self.state.conflict = {} if self.surgery is None else self.surgery.state_dict()
        save_checkpoint(
            self.folder / "checkpoints", self.engine, asdict(self.state), keep=self.run.train.keep_checkpoints
        )
        self.preemption.saved()
        self.started = time.perf_counter()

    def step(self, served: list[tuple[int, Rows]]) -> torch.Tensor:
        """One optimizer step: every micro-batch of this rank, then one update. Returns the gradient norm.

        Each example's loss is divided by the step's number of examples over all tasks and ranks, so neither the cut
        into micro-batches nor the ranks change the gradient.
        """
        longest = max(self.engine.padded(int(self.schedule.lengths[task][rows].max())) for task, rows in served)
        count = sum(len(rows) for _, rows in served)
        for done in self.guard.retry_on_oom(lambda: self.accumulate(served, count), longest=longest):
            self.count(*done)
        options = self.run.optimizer
        rate = self.peak_rate * learning_rate_factor(
            self.state.step, self.total_steps, options.warmup, options.schedule
        )
        return self.guard.stop_on_oom(lambda: self.update(rate))

    def update(self, rate: float) -> torch.Tensor:
        """Conflicts resolved, gradients summed over the ranks, clipped, applied. Returns the norm before clipping."""
        if self.surgery is not None:
            self.engine.apply_surgery(self.surgery, self.state.step)
        return self.engine.step(rate=rate, max_norm=self.run.optimizer.max_gradient_norm)

    def accumulate(self, served: list[tuple[int, Rows]], count: int) -> list[Done]:
        """Gradients of this rank's micro-batches. Nothing here waits for another rank or outlives a failure."""
        done: list[Done] = []
        self.engine.seed(self.run.train.seed, self.state.step)
        self.engine.checkpoint_layers(self.state.checkpoint_layers)
        self.engine.advance(self.state.step / self.total_steps)
        factors = self.task_weights.factors({task: len(rows) for task, rows in served})
        micros = self.micro_batches(served)
        for micro, following in zip_longest(micros, micros[1:]):
            batch, loss_sum = self.forward(micro)
            value = loss_sum if self.variances is None else self.variances(batch.task, loss_sum, len(micro.rows))
            if micro.filler:  # an extra example that keeps ranks in step: its gradient is zero
                value = value * 0.0
            value = value * factors[micro.task]
            ends = micro.task if following is None or following.task != micro.task else None
            self.engine.backward(value, count, last=following is None, task=ends)
            done.append((micro, batch.tokens, batch.useful_tokens, loss_sum.detach()))
        return done

    def forward(self, micro: MicroBatch) -> tuple[Batch, torch.Tensor]:
        """The micro-batch on the device, and its summed loss."""
        task, engine = self.tasks[micro.task], self.engine
        corpus = self.train[micro.task]
        batch = corpus.batch(task.name, micro.rows, padding_id=self.padding_id, multiple=engine.multiple)
        batch = engine.to_device(batch)
        return batch, task.objective.loss(engine.forward(batch), batch.labels_B)

    def micro_batches(self, served: list[tuple[int, Rows]]) -> list[MicroBatch]:
        engine, budget = self.engine, self.state.tokens_per_micro_batch
        lengths = self.schedule.lengths
        return micro_batches(
            served, lengths, budget=budget, rank=engine.rank, ranks=engine.ranks, multiple=engine.multiple,
            cost=self.state.micro_batch_cost,
        )  # fmt: skip

    def count(self, micro: MicroBatch, tokens: int, useful: int, loss_sum: torch.Tensor) -> None:
        """Keep sums for the next log entry; the losses stay on the device, so nothing waits for it here."""
        if micro.filler:
            return
        name = self.tasks[micro.task].name
        self.loss_sums[name] = self.loss_sums.get(name, 0.0) + loss_sum
        self.counts[name] = self.counts.get(name, 0) + len(micro.rows)
        self.window_tokens += tokens
        self.window_useful += useful

    def log(self) -> None:
        """The one place where the loop waits for the device and meets the other ranks about numbers."""
        losses = {name: float(value) for name, value in self.loss_sums.items()}
        shares = self.engine.gather((losses, self.counts, self.window_tokens, self.window_useful))
        names = [task.name for task in self.tasks if any(task.name in counts for _, counts, _, _ in shares)]
        counts = {name: sum(share[1].get(name, 0) for share in shares) for name in names}
        mean_loss = {name: sum(share[0].get(name, 0.0) for share in shares) / counts[name] for name in names}
        tokens, useful = sum(share[2] for share in shares), sum(share[3] for share in shares)
        state, now = self.state, time.perf_counter()
        seconds, self.started = now - self.started, now
        state.seconds += seconds
        state.examples += sum(counts.values())
        state.tokens += tokens
        state.useful_tokens += useful
        if not all(math.isfinite(value) for value in mean_loss.values()):
            raise UserError(
                f"step {state.step}: the loss is no longer finite ({mean_loss}); the last checkpoint is whole. Lower "
                f"--learning_rate, or use --precision bf16 or fp32"
            )
        entry: dict[str, Any] = {
            "loss": mean_loss,
            "learning_rate": self.engine.optimizer.param_groups[0]["lr"],
            "gradient_norm": float(self.norm),
            "examples_per_second": sum(counts.values()) / seconds,
            "tokens_per_second": tokens / seconds,
            "useful_token_share": useful / tokens,
            "memory_gigabytes": self.engine.memory() / 1e9,
            "seconds_left": state.seconds / state.step * (self.total_steps - state.step),
        }
        if self.surgery is not None and self.surgery.seen_TT is not None:
            cosines = self.surgery.seen_TT.tolist()
            pairs = combinations(enumerate(task.name for task in self.tasks), 2)
            entry["task_cosines"] = {f"{one}-{other}": cosines[row][column] for (row, one), (column, other) in pairs}
            self.report.cosines(state.step, [task.name for task in self.tasks], cosines)
        self.report.progress(state.step, self.total_steps, entry)
        self._clear_window()

    def evaluation_due(self) -> bool:
        step = self.state.step
        return step == self.total_steps or (self.evaluate_every > 0 and step % self.evaluate_every == 0)

    def evaluate(self) -> bool:
        """Dev metrics of every task; keep the best model. False: patience is at its end."""
        state, begun = self.state, time.perf_counter()
        self.report.state("evaluating", state.step)
        state.seconds += begun - self.started
        metrics: dict[str, dict[str, float]] = {}
        budget = max(UNPLANNED_TOKENS, state.tokens_per_micro_batch)  # without gradients more goes in
        for task in self.tasks:
            if task.name in self.dev:
                found = predict(self.engine, task, self.dev[task.name], budget=budget, padding_id=self.padding_id)
                values = found.metrics()
                metrics[task.name] = {task.metric: values[task.metric], **values}
                confusion = found.confusion()
                if confusion is not None:
                    self.report.confusion(state.step, task.name, confusion)
        self.engine.model.train()
        self._compare(metrics)
        self.started = time.perf_counter()
        state.evaluation_seconds += self.started - begun
        return self.run.train.patience is None or state.evaluations_without_better < self.run.train.patience

    def _compare(self, metrics: dict[str, dict[str, float]]) -> None:
        state = self.state
        headline = {task.name: metrics[task.name][task.metric] for task in self.tasks if task.name in metrics}
        mean = sum(headline.values()) / len(headline) if headline else float("nan")
        if metrics:
            self.report.evaluation(state.step, metrics, mean)
        improved = state.update_bests(headline)
        if self.run.train.keep_best == "parts":
            better = bool(improved) or not headline
            kept = [name for name in headline if name not in improved]
            if len(kept) < len(self.tasks):  # what has no dev split is kept as it is now
                state.best_metrics |= {name: metrics[name] for name in improved}
                state.best_mean, state.best_step = state.mean_of_bests(), state.step
                self.save("model", state.best_metrics, kept)
        else:
            better = not headline or is_better(mean, state.best_mean)
            if better:
                state.best_mean, state.best_step, state.best_metrics = mean, state.step, metrics
                self.save("model", metrics, ())
        state.evaluations_without_better = 0 if better else state.evaluations_without_better + 1
        for name in improved if self.run.train.keep_best == "each" else ():
            self.save(f"best/{name}", metrics, ())

    def _clear_window(self) -> None:
        self.loss_sums: dict[str, Any] = {}
        self.counts: dict[str, int] = {}
        self.window_tokens = self.window_useful = 0
