"""Out of memory is not the end: all ranks drop the step, make the micro-batches smaller, and run it again.

Micro-steps have no collectives in them, so a rank that fails can say so and the others can hear it: one vote over the
processors, before gradients are summed. The step is then run again with the same examples and from the same seed.
(Composer's automatic micro-batch dead-locks where one rank's backward alone fails: mosaicml/composer issue 2117.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import torch

from pal_dist.core.console import say
from pal_dist.core.errors import DoesNotFitError
from pal_dist.distributed.engine import Engine

T = TypeVar("T")

OK, RETRY, STOP = 0, 1, 2
"""What a rank votes for: go on, run the step again, stop."""

SMALLER_RUN = (
    "a lower --max_length, a smaller --model, --precision fp16 or bf16, or more memory; `pal-dist plan` says what each "
    "brings"
)


class MicroBatchLimits(Protocol):
    """How finely a run cuts its steps; the guard tightens it."""

    tokens_per_micro_batch: int
    checkpoint_layers: int
    step: int


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device (or cuBLAS, cuDNN on it) had no memory left."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    signs = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


class OutOfMemoryGuard:
    """Runs the parts of a step so that all ranks agree whether it happened."""

    def __init__(self, engine: Engine, limits: MicroBatchLimits, *, on_change: Callable[[str], None] = lambda _: None):
        """`on_change` is told, on every rank, how the limits have changed and why."""
        self.engine, self.limits, self.on_change = engine, limits, on_change

    def retry_on_oom(self, attempt: Callable[[], T], *, longest: int) -> T:
        """Run what has no collectives in it until no rank runs out of memory; the result of the last attempt.

        Args:
            attempt: the micro-steps; reads the limits anew each time. Its gradients are dropped if it has to run again.
            longest: tokens of the step's longest example: no micro-batch can be smaller.

        Raises DoesNotFitError, on every rank, where the limits cannot be tightened any more.
        """
        while True:
            failure, result = "", None
            try:
                result = attempt()
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                failure = _first_line(error)
            if failure and not self.engine.micro_steps_are_local:
                self._stop_all(failure)
            # The exception is gone, and with it the frames that held the attempt's tensors.
            if self.engine.vote(RETRY if failure else OK) == OK:
                assert result is not None
                return result
            del result
            self.engine.discard_step()
            self._tighten(failure, longest)

    def stop_on_oom(self, attempt: Callable[[], T]) -> T:
        """Run what changes parameters. Out of memory half-way cannot be taken back: every rank stops.

        Raises DoesNotFitError, on every rank.
        """
        failure, result = "", None
        try:
            result = attempt()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            failure = _first_line(error)
        if self.engine.vote(STOP if failure else OK) != OK:
            allows_8_bit = "adamw_8bit" in self.engine.strategy.optimizers
            start_anew = "start anew with --optimizer adamw_8bit, or " if allows_8_bit else ""
            raise DoesNotFitError(
                f"step {self.limits.step + 1}: out of memory in the optimizer's update{_where(failure)}, which cannot "
                f"be taken back. The last checkpoint is whole: {start_anew}resume with {SMALLER_RUN}"
            )
        assert result is not None
        return result

    def _stop_all(self, failure: str) -> None:
        """The others wait in a collective for this rank, so there is no vote: they are told to end."""
        error = DoesNotFitError(
            f"step {self.limits.step + 1}: out of memory in a micro-batch ({failure}), which "
            f"{self.engine.strategy.name} cannot run again, since its ranks share out the parameters. The last "
            f"checkpoint is whole: resume with --tokens_per_micro_batch "
            f"{max(1, self.limits.tokens_per_micro_batch // 2)}, or --strategy zero2"
        )
        self.engine.group.abort(error.exit_code, str(error))
        raise error

    def _tighten(self, failure: str, longest: int) -> None:
        limits, before = self.limits, self.limits.tokens_per_micro_batch
        if before > longest:
            limits.tokens_per_micro_batch = max(longest, before // 2)
            change = f"micro-batches of at most {limits.tokens_per_micro_batch:,} tokens (were {before:,})"
        elif limits.checkpoint_layers != 1:
            limits.checkpoint_layers = 1
            change = "every layer computed again in backward (gradient checkpointing)"
        else:
            raise DoesNotFitError(
                f"step {limits.step + 1}: out of memory with single examples of {longest:,} tokens and every layer "
                f"checkpointed{_where(failure)}. The last checkpoint is whole. What helps: {SMALLER_RUN}"
            )
        self.on_change(f"step {limits.step + 1}: out of memory{_where(failure)}: the step is run again with {change}")


def _where(failure: str) -> str:
    return f" ({failure})" if failure else " on another rank"


def _first_line(error: BaseException) -> str:
    return str(error).split("\n")[0].split(" GPU ")[0].strip() or type(error).__name__


def say_on_main(engine: Engine) -> Callable[[str], None]:
    """Tell the person once, not once a rank."""
    return say if engine.is_main else lambda _: None
