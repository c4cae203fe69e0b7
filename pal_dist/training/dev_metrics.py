"""How good the model is now: metrics of every task's whole dev split."""

from __future__ import annotations

from pal_dist.training.evaluate import predict
from pal_dist.training.run import Run


def dev_metrics(run: Run) -> dict[str, dict[str, float]]:
    """{task: {metric: value}} of every task that has a dev split, the headline metric first.

    Confusion matrices go to the report. Every rank must call it.
    """
    metrics: dict[str, dict[str, float]] = {}
    budget = max(run.config.memory.token_budget, run.state.tokens_per_micro_batch)  # without gradients more goes in
    for task in run.tasks:
        if task.name not in run.corpora.dev:
            continue
        corpus = run.corpora.dev[task.name]
        predictions = predict(run.engine, task, corpus, budget=budget)
        values = predictions.metrics()
        metrics[task.name] = {task.metric: values[task.metric], **values}
        confusion = predictions.confusion()
        if confusion is not None:
            run.report.confusion(run.state.step, task.name, confusion)
    return metrics
