"""Forward, losses and backward of one micro-batch: what a step repeats, and what a CUDA graph records."""

from __future__ import annotations

import torch
from torch import Tensor

from pal_dist.data.batch import Batch
from pal_dist.optim.task_weighting import LEARNED_VARIANCES, LearnedVariances
from pal_dist.training.run import Run


class MicroBatchPass:
    """`run_pass(batch)` adds a micro-batch's gradients to this rank's."""

    def __init__(self, run: Run):
        self.run = run
        self.variances: LearnedVariances | None = getattr(run.engine.model, LEARNED_VARIANCES, None)

    def __call__(self, batch: Batch, *, last: bool = True, task: int | None = None) -> Tensor:
        """The summed loss of each segment, (S,), detached; nothing here waits for the device.

        Args:
            batch: on the device; its factors say what each segment's loss counts in the step's.
            last, task: see `Engine.backward`.
        """
        losses = self.run.losses(batch)
        losses_S = torch.stack(losses)
        weighted_S = losses_S
        if self.variances is not None:
            parts = zip(batch.segments, losses, batch.examples_S.unbind(), strict=True)
            weighted_S = torch.stack([self.variances(segment.task, loss, count) for segment, loss, count in parts])
        loss = (weighted_S * batch.factors_S.to(weighted_S.dtype)).sum()
        self.run.engine.backward(loss, last=last, task=task)
        return losses_S.detach()
