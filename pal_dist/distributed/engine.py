"""What a rank does for training: device, precision, gradients, updates, and what it asks of the other ranks.

Micro-steps are local: no collective runs in forward or backward. Once per optimizer step the gradients are summed over
the ranks. So any mix of tasks gives the same gradient as one process with one big batch, and nothing waits for a rank
that is still computing. (Strategies that share out parameters gather them layer by layer; there micro-steps do wait.)
"""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pal_dist.core.errors import UserError
from pal_dist.data.batch import Batch
from pal_dist.distributed.hardware import Hardware, hardware_of
from pal_dist.distributed.precision import LossScale, choose_precision
from pal_dist.distributed.process_group import ProcessGroup
from pal_dist.distributed.replicated import Moments, ReplicatedBackend
from pal_dist.distributed.strategy import choose_strategy
from pal_dist.distributed.task_gradients import TaskGradients
from pal_dist.models.multi_task import MultiTaskBert
from pal_dist.optim.gradient_surgery import GradientSurgery


class Engine:
    """One rank: its device, its precision, its share of the model and optimizer, and the other ranks."""

    def __init__(self, *, precision: str = "auto", strategy: str = "auto"):
        prepare_environment()
        self.strategy = choose_strategy(strategy, os.environ)
        for name in ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP"):  # ours to do: see zero.py
            os.environ.pop(name, None)
        self.group = ProcessGroup()
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

        # Accelerate keeps one state a process; a notebook that trains again may want another precision.
        AcceleratorState._reset_state(reset_partial_state=True)
        capability = torch.cuda.get_device_capability() if torch.cuda.is_available() else None
        self.precision = choose_precision(precision, capability)
        mixed = {"fp32": "no"}.get(self.precision.name, self.precision.name)
        self.accelerator = Accelerator(mixed_precision=mixed, gradient_accumulation_steps=1)
        self.device: torch.device = self.accelerator.device
        self.rank, self.ranks = self.group.rank, self.group.ranks
        if self.accelerator.num_processes != self.ranks:
            raise UserError(
                f"the launcher started {self.ranks} processes, but Accelerate sees {self.accelerator.num_processes}; "
                f"start with: accelerate launch --config_file accelerate_configs/ddp.yaml --num_processes 2 ..."
            )
        self.is_main = self.rank == 0
        self.loss_scale = LossScale(device=self.device) if self.precision.name == "fp16" else None
        self.task_gradients: TaskGradients | None = None
        """Holds each task's gradient of the shared parameters by itself; None: they are summed as they come."""
        self.run_folder_lock: Any = None
        """Held by rank 0, from when the run's folder is chosen until `release_run_folder`."""

    def prepare(self, model: MultiTaskBert, optimizer: torch.optim.Optimizer) -> None:
        """Spread the model (already on the device) and its optimizer as the strategy says, from rank 0's values."""
        self.model = model
        self.backend = self._backend(model, optimizer)
        self.backend.start()

    def separate_task_gradients(self, tasks: int) -> None:
        """From now on each task's gradient of the shared encoder is held by itself until `apply_surgery`."""
        shared = [parameter for name, parameter in self.backend.names.items() if self.model.is_shared(name)]
        self.task_gradients = TaskGradients(shared, tasks, ranks=self.ranks)

    def apply_surgery(self, surgery: GradientSurgery, step: int) -> None:
        """Make one gradient of the tasks', weighted as the surgery says. Every rank must call it."""
        assert self.task_gradients is not None, "separate_task_gradients comes first"
        self.task_gradients.merge(surgery.weights(self.task_gradients.gram(), step))

    def _backend(self, model: MultiTaskBert, optimizer: torch.optim.Optimizer) -> ReplicatedBackend:
        parts = model, optimizer, self.group, self.loss_scale
        if self.strategy.kind == "replicated":
            return ReplicatedBackend(*parts)
        if self.ranks == 1:
            self.group.init_alone()
        if self.strategy.kind == "zero":
            from pal_dist.distributed.zero import ZeroBackend

            return ZeroBackend(*parts, strategy=self.strategy)
        from pal_dist.distributed.fsdp2 import FSDP2Backend

        return FSDP2Backend(*parts)

    @property
    def optimizer(self) -> Any:
        return self.backend.optimizer

    @property
    def micro_steps_are_local(self) -> bool:
        """No rank waits for another in forward or backward, so a step that fails on one can be dropped by all."""
        return self.ranks == 1 or not self.strategy.shares_parameters

    def to_device(self, batch: Batch) -> Batch:
        """The batch on this rank's device; the copy does not wait for it, where the batch is pinned."""
        return batch.to(self.device)

    def forward(self, batch: Batch) -> list[Tensor]:
        """Logits of each segment of a batch on this device, (rows, C), in float32 (or the model's own wider type)."""
        logits: list[Tensor] = self.run_in_precision(self.model, batch)
        return logits

    def run_in_precision(self, function: Callable[[Batch], Any], batch: Batch) -> Any:
        """`function(batch)` under the run's autocast, for a batch on this device."""
        with self.accelerator.autocast():
            return function(batch)

    def backward(self, loss: Tensor, *, last: bool = True, task: int | None = None) -> None:
        """Add a micro-batch's part of the step's loss to this rank's gradients.

        Args:
            last: no other micro-batch of the step follows.
            task: no other micro-batch of this task follows in the step; None: one does, or nobody asks.
        """
        if self.task_gradients is None:
            self.backend.backward(loss, last=last)
            return
        self.backend.backward(loss, last=task is not None)
        if task is not None:
            self.task_gradients.set_aside(task, last=last)

    def set_progress(self, progress: float) -> None:
        """Tell the adapters which share (0 to 1) of the run's steps is done: some train parts of them later."""
        self.model.set_progress(progress)

    def checkpoint_layers(self, every: int) -> None:
        """Compute every `every`-th encoder layer again in backward instead of keeping it; 0: none."""
        self.model.checkpoint_layers = every

    def vote(self, flag: int) -> int:
        """The highest flag of all ranks, on every rank. No device takes part."""
        return self.group.vote(flag)

    def discard_step(self) -> None:
        """Forget what a step that failed has left: gradients and cached memory."""
        self.backend.discard_gradients()
        if self.task_gradients is not None:
            self.task_gradients.discard()
        self.empty_cache()

    def empty_cache(self) -> None:
        """Give unused cached memory back to the device."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def step(self, *, rate: float, max_norm: float) -> Tensor:
        """Reduce, clip, update with this learning rate, and clear. Returns the gradient norm before clipping."""
        norm = self.backend.step(rate=rate, max_norm=max_norm)
        self.model.forget_weight_copies()
        return norm

    def parameter_states(self) -> Iterator[tuple[str, Tensor, Moments]]:
        """(name, whole value, optimizer's state) of each trained parameter. Every rank must go through all of them."""
        return self.backend.parameter_states()

    def full_state_dict(self) -> Mapping[str, Tensor]:
        """The model's whole state, as for saving. Every rank must call it."""
        return self.backend.full_state_dict()

    def gather(self, item: Any) -> list[Any]:
        """Every rank's item, in rank order, on every rank."""
        return self.group.gather(item)

    def wait_for_everyone(self) -> None:
        """Return when every rank has called it. No device takes part."""
        self.group.vote(0)

    def hardware(self) -> Hardware:
        """This rank's device as it reports itself: its free memory is what other processes leave."""
        return hardware_of(self.device)

    def peak_memory(self) -> int:
        """Bytes in use: the highest so far on a GPU, this process's resident memory on a CPU."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        import psutil

        return int(psutil.Process().memory_info().rss)

    def peak_reserved_memory(self) -> int:
        """Highest bytes that PyTorch has reserved on the device so far; on a CPU the same as `peak_memory`."""
        return torch.cuda.max_memory_reserved(self.device) if self.device.type == "cuda" else self.peak_memory()

    def reset_peak_memory(self) -> None:
        """Let the peaks begin anew."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def set_seed(self, *numbers: int) -> None:
        """Random numbers are from now on a function of these numbers and the rank: dropout of a step does not depend
        on what ran before it, so a step that is resumed or run again needs no remembered state."""
        state = np.random.SeedSequence([*numbers, self.rank]).generate_state(1, np.uint64)
        torch.manual_seed(int(state[0] >> np.uint64(1)))

    @property
    def random_state(self) -> Tensor:
        """Of the generator that this rank's dropout draws from."""
        return torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else torch.get_rng_state()

    @random_state.setter
    def random_state(self, state: Tensor) -> None:
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state, self.device)
        else:
            torch.set_rng_state(state)

    def loss_scale_state(self) -> dict[str, Any]:
        """State of fp16's loss scaling; empty in other precisions."""
        return {} if self.loss_scale is None else self.loss_scale.state_dict()

    def load_loss_scale_state(self, state: dict[str, Any]) -> None:
        if state and self.loss_scale is not None:
            self.loss_scale.load_state_dict(state)

    def release_run_folder(self) -> None:
        """Give up the lock on the run's folder, where this rank holds it."""
        if self.run_folder_lock is not None:
            self.run_folder_lock.release()

    def close(self) -> None:
        """Leave the other ranks."""
        self.release_run_folder()
        self.group.leave()


def prepare_environment() -> None:
    """What libraries read when they are first imported or used; to be called before that."""
    if not torch.cuda.is_available():
        os.environ["ACCELERATE_USE_CPU"] = "true"  # without it, processes of a CPU launch each believe they are alone
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed warns that it guessed
        keep_freed_memory()
    # Read when CUDA is first used: cached blocks of one size can then serve batches of another.
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")


def keep_freed_memory() -> None:
    """Tell glibc to keep freed blocks for the next allocation; does nothing with another C library.

    By default it hands large blocks back to the kernel, which clears them page by page when they are wanted again a
    millisecond later. Keeping them made training on CFIMDB (256 tokens) 1.8 times as fast (BENCHMARKS.md).
    """
    trim_threshold, mmap_threshold, largest = -1, -3, 2**31 - 1
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(trim_threshold, largest)
        libc.mallopt(mmap_threshold, largest)
