"""Which model of a run is kept: the one with the best dev scores, whole or task by task."""

from __future__ import annotations

from collections.abc import Sequence

from pal_dist import __version__
from pal_dist.models.export import export_model, saved_task_parts
from pal_dist.monitoring import run_files
from pal_dist.optim.task_weighting import LEARNED_VARIANCES
from pal_dist.training.run import Run
from pal_dist.training.run_state import is_better

Metrics = dict[str, dict[str, float]]
"""{task: {metric: value}}."""


class BestModel:
    """Compares every evaluation with the best so far and keeps what is better, as --keep_best says."""

    def __init__(self, run: Run):
        self.run = run

    def update(self, metrics: Metrics) -> None:
        """An evaluation has given these dev metrics. Every rank must call it: parameters are gathered for saving."""
        run, state = self.run, self.run.state
        scores = {task.name: metrics[task.name][task.metric] for task in run.tasks if task.name in metrics}
        mean = sum(scores.values()) / len(scores) if scores else float("nan")
        if metrics:
            names = {task.name: task.metric for task in run.tasks if task.name in metrics}
            run.report.evaluation(state.step, metrics, mean, headline=names)
        improved = state.update_bests(scores)
        if run.config.train.keep_best == "parts":
            better = bool(improved) or not scores
            self._keep_parts(metrics, improved, [name for name in scores if name not in improved])
        else:
            better = not scores or is_better(mean, state.best_mean)
            if better:
                state.best_mean, state.best_step, state.best_metrics = mean, state.step, metrics
                self._save(run_files.MODEL, metrics)
        state.evaluations_without_better = 0 if better else state.evaluations_without_better + 1
        for name in improved if run.config.train.keep_best == "each" else ():
            self._save(f"{run_files.BEST}/{name}", metrics)

    def _keep_parts(self, metrics: Metrics, improved: Sequence[str], unchanged: Sequence[str]) -> None:
        """One model of the parts that each task had at its own best; what has no dev split is kept as it is now."""
        state = self.run.state
        if len(unchanged) == len(self.run.tasks):
            return
        state.best_metrics |= {name: metrics[name] for name in improved}
        state.best_mean, state.best_step = state.mean_of_bests(), state.step
        self._save(run_files.MODEL, state.best_metrics, unchanged)

    def _save(self, name: str, metrics: Metrics, unchanged: Sequence[str] = ()) -> None:
        """Write the model into the run's folder; adapters and heads of `unchanged` tasks stay as they are there."""
        run = self.run
        values = {
            name: value
            for name, value in run.engine.full_state_dict().items()
            if not name.startswith(LEARNED_VARIANCES)
        }
        if not run.engine.is_main:
            return
        folder = run.folder / name
        export_model(
            run.model,
            folder,
            values=values | saved_task_parts(folder, unchanged),
            source=run.inputs.paths.model_dir,
            card=self._card(),
            counts=run.parameters,
            metrics=metrics,
        )

    def _card(self) -> dict[str, object]:
        """What the model card says of how the model was trained."""
        config = self.run.config
        return {
            "encoder": config.model.model,
            "adapter": config.model.adapter,
            "mode": config.train.mode,
            "step": self.run.state.step,
            "learning_rate": self.run.peak_rate,
            "batch_size": config.batch.batch_size,
            "sampling": config.batch.sampling,
            "seed": config.train.seed,
            "synthetic": self.run.inputs.paths.synthetic,
            "pal-dist": __version__,
        }
