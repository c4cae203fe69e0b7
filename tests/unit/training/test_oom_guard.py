"""What counts as out of memory, and in which order the limits are tightened; no device is needed to be told."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pal_dist.core.errors import DoesNotFitError
from pal_dist.distributed.strategy import read_strategy
from pal_dist.training.oom_guard import OK, OutOfMemoryGuard, is_out_of_memory
from pal_dist.training.run_state import RunState


@pytest.mark.parametrize(
    ("error", "counts"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("CUDA error: out of memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(error: Exception, counts: bool) -> None:
    assert is_out_of_memory(error) == counts


def guard_of(state: RunState, changes: list[str], *, strategy: str = "ddp") -> OutOfMemoryGuard:
    """A guard of one rank, whose vote is its own."""
    engine: Any = SimpleNamespace(
        micro_steps_are_local=True,
        vote=lambda flag: flag,
        discard_step=lambda: None,
        strategy=read_strategy(strategy),
    )
    return OutOfMemoryGuard(engine, state, on_change=changes.append)


def test_limits_are_tightened_until_the_step_fits() -> None:
    state, changes = RunState(tokens_per_micro_batch=400), []

    def attempt() -> int:
        if state.tokens_per_micro_batch > 60:
            raise torch.OutOfMemoryError("CUDA out of memory. GPU 0 has no more")
        return state.tokens_per_micro_batch

    assert guard_of(state, changes).retry_on_oom(attempt, longest=48) == 50
    assert [change.split("of at most ")[1].split(" ")[0] for change in changes] == ["200", "100", "50"]


def test_checkpointing_comes_last_and_then_the_end() -> None:
    state, changes = RunState(tokens_per_micro_batch=100), []

    def attempt() -> int:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(DoesNotFitError, match="single examples of 48 tokens and every layer checkpointed"):
        guard_of(state, changes).retry_on_oom(attempt, longest=48)
    assert state.tokens_per_micro_batch == 48
    assert state.checkpoint_layers == 1
    assert len(changes) == 3


def test_an_update_cannot_be_taken_back() -> None:
    def attempt() -> int:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(
        DoesNotFitError, match=r"out of memory in the optimizer's update.*: start anew with --optimizer"
    ):
        guard_of(RunState(), []).stop_on_oom(attempt)
    with pytest.raises(DoesNotFitError, match=r"out of memory in the optimizer's update.*: resume with"):
        guard_of(RunState(), [], strategy="zero2").stop_on_oom(attempt)  # which allows no 8-bit state


def test_other_errors_are_not_touched() -> None:
    def attempt() -> int:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        guard_of(RunState(), []).retry_on_oom(attempt, longest=1)
    assert OK == 0
