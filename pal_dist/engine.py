"""Devices, precision and ranks: the only room that knows Accelerate and torch.distributed.

Micro-steps are local: no collective runs in forward or backward. Once per optimizer step the gradients are summed over
the ranks, in buckets. So any mix of tasks gives the same gradient as one process with one big batch, a parameter that
no served task uses keeps no gradient on every rank, and nothing can wait for a rank that is still computing.
"""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pal_dist.data import Batch
from pal_dist.errors import UserError
from pal_dist.memory.devices import Device, cpu_device, device_at_hand

BUCKET_ELEMENTS = 32 * 1024 * 1024
"""Gradient elements summed over the ranks in one collective: large enough to be limited by bandwidth alone."""


@dataclass(frozen=True)
class Precision:
    """Number format of the model's matrix products; parameters and their gradients stay in float32."""

    name: str
    reason: str


def choose_precision(asked: str, capability: tuple[int, int] | None) -> Precision:
    """The precision for a GPU of this compute capability (None: a CPU). Raises UserError where it cannot be right."""
    if asked == "fp16" and capability is None:
        raise UserError("--precision fp16 needs a GPU (on a CPU it would silently be fp32); use auto, fp32 or bf16")
    if asked == "bf16" and capability is not None and capability < (8, 0):
        major, minor = capability
        raise UserError(
            f"--precision bf16: this GPU has capability {major}.{minor} and only emulates bf16, four times slower than "
            f"fp16; use auto or fp16"
        )
    if asked != "auto":
        return Precision(asked, "asked for")
    if capability is None:
        return Precision("fp32", "no GPU")
    named = f"GPU capability {capability[0]}.{capability[1]}"
    if capability < (8, 0):
        return Precision("fp16", f"{named}: below 8.0 bf16 is only emulated")
    return Precision("bf16", f"{named}: bf16 needs no loss scaling")


class Engine:
    """One rank's hands: puts things on its device, runs them in the run's precision, meets the other ranks."""

    def __init__(self, *, precision: str = "auto"):
        # Said before Accelerate looks: without it, processes of a CPU launch each believe they are alone.
        if not torch.cuda.is_available():
            os.environ["ACCELERATE_USE_CPU"] = "true"
            os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed, once imported, warns that it guessed
            keep_freed_memory()
        # Read when CUDA is first used: cached blocks of one size can then serve batches of another.
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

        # Accelerate keeps one state a process; a notebook that trains again may want another precision.
        AcceleratorState._reset_state(reset_partial_state=True)
        capability = torch.cuda.get_device_capability() if torch.cuda.is_available() else None
        self.precision = choose_precision(precision, capability)
        mixed = {"fp32": "no"}.get(self.precision.name, self.precision.name)
        self.accelerator = Accelerator(mixed_precision=mixed, gradient_accumulation_steps=1)
        promised = int(os.environ.get("WORLD_SIZE", "1"))
        if self.accelerator.num_processes != promised:
            raise UserError(
                f"the launcher started {promised} processes, but Accelerate sees {self.accelerator.num_processes}; "
                f"start with: accelerate launch --config_file accelerate_configs/cpu_2.yaml -m pal_dist train ..."
            )
        self.device: torch.device = self.accelerator.device
        self.rank, self.ranks = self.accelerator.process_index, self.accelerator.num_processes
        self.is_main: bool = self.accelerator.is_main_process
        self.buffer = torch.empty(0)
        """What collectives go through; see `prepare`."""
        self.lock: Any = None
        """Held on the run's folder by rank 0 until `release`."""
        self.multiple = 8 if self.device.type == "cuda" else 1
        """Sequence lengths are padded to a multiple of this: fused attention kernels want aligned masks."""

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Take the model (already on the device) and its optimizer in hand. Ranks start from rank 0's parameters."""
        self.model = model
        self.optimizer = self.accelerator.prepare_optimizer(optimizer, device_placement=False)
        self.trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if self.ranks > 1:
            # Votes go over the processors: they neither wait for a device nor take its memory.
            self.voters = torch.distributed.new_group(backend="gloo")
            everything = [parameter.data for parameter in model.parameters()]
            largest = max(sum(part.numel() for part in bucket) for bucket in _buckets(everything))
            # Allocated once, so that no rank can run out of memory while the others wait for it in a collective.
            self.buffer = torch.empty(largest, dtype=everything[0].dtype, device=self.device)
            self._through_buffer(everything, partial(torch.distributed.broadcast, src=0))

    def _through_buffer(self, tensors: list[Tensor], collective: Callable[[Tensor], Any]) -> None:
        """Run a collective over many tensors in few large pieces."""
        for bucket in _buckets(tensors):
            flat = self.buffer[: sum(part.numel() for part in bucket)]
            pieces = [piece.view_as(part) for piece, part in zip(_split(flat, bucket), bucket, strict=True)]
            torch._foreach_copy_(pieces, bucket)
            try:
                collective(flat)
            except torch.OutOfMemoryError:  # the library's own buffers: the others are waiting, so once more
                self.free_caches()
                collective(flat)
            torch._foreach_copy_(bucket, pieces)

    def padded(self, length: int) -> int:
        """The length to which a sequence of this length is padded here."""
        return -(-length // self.multiple) * self.multiple

    def place(self, batch: Batch) -> Batch:
        """The batch on this rank's device; the copy does not wait."""
        if self.device.type == "cpu":
            return batch
        moved = [
            part.pin_memory().to(self.device, non_blocking=True) if isinstance(part, Tensor) else part for part in batch
        ]
        return Batch(*moved)  # type: ignore[arg-type]

    def forward(self, batch: Batch) -> Tensor:
        """logits_BC in float32 (or the model's own wider type) of a placed batch."""
        with self.accelerator.autocast():
            logits: Tensor = self.model(batch)
        return logits if logits.dtype == torch.float64 else logits.float()

    def backward(self, loss_sum: Tensor, count: int) -> None:
        """Add d(loss_sum / count) to this rank's gradients; `count` is the step's examples over all ranks."""
        self.accelerator.backward(loss_sum / count)

    def checkpoint_layers(self, every: int) -> None:
        """Compute every `every`-th encoder layer again in backward instead of keeping it; 0: none."""
        setattr(self.model, "checkpoint_layers", every)  # noqa: B010 (a property that nn.Module's type does not know)

    def reduce_gradients(self) -> None:
        """Sum the gradients over the ranks. Which parameters have one is the same everywhere, by construction."""
        if self.ranks == 1:
            return
        gradients = [parameter.grad for parameter in self.trained if parameter.grad is not None]
        self._through_buffer(gradients, torch.distributed.all_reduce)

    def vote(self, flag: int) -> int:
        """The highest flag of all ranks, on every rank. No device takes part."""
        if self.ranks == 1:
            return flag
        ballot = torch.tensor(flag)
        torch.distributed.all_reduce(ballot, op=torch.distributed.ReduceOp.MAX, group=self.voters)
        return int(ballot)

    def drop_step(self) -> None:
        """Forget what a step that failed has left: gradients and cached memory."""
        self.optimizer.zero_grad(set_to_none=True)
        self.free_caches()

    def free_caches(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def step(self, *, rate: float, max_norm: float) -> Tensor:
        """Reduce, clip, update with this learning rate, and clear. Returns the gradient norm before clipping."""
        self.reduce_gradients()
        norm: Tensor = self.accelerator.clip_grad_norm_(self.trained, max_norm or float("inf"))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)  # none, not zero: AdamW leaves tasks that are not served alone
        return norm

    def gather(self, item: Any) -> list[Any]:
        """Every rank's item, in rank order, on every rank."""
        if self.ranks == 1:
            return [item]
        gathered: list[Any] = [None] * self.ranks
        torch.distributed.all_gather_object(gathered, item)
        return gathered

    def wait(self) -> None:
        self.accelerator.wait_for_everyone()

    def device_at_hand(self) -> Device:
        """This rank's device as the planner sees it: its free memory is what other processes leave."""
        if self.device.type == "cpu":
            import psutil

            local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
            return cpu_device(int(psutil.virtual_memory().available) // local)
        properties = torch.cuda.get_device_properties(self.device)
        free, total = torch.cuda.mem_get_info(self.device)
        taken = total - free - torch.cuda.memory_reserved(self.device)
        return device_at_hand(properties.name, total, (properties.major, properties.minor), taken=taken)

    def memory(self) -> int:
        """Bytes in use: the highest so far on a GPU, this process's resident memory on a CPU."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        import psutil

        return int(psutil.Process().memory_info().rss)

    def reserved_memory(self) -> int:
        """Highest bytes taken from the device so far; on a CPU the same as `memory`."""
        return torch.cuda.max_memory_reserved(self.device) if self.device.type == "cuda" else self.memory()

    def reset_memory(self) -> None:
        """Let the highest figures begin anew."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def seed(self, *numbers: int) -> None:
        """Random numbers are from now on a function of these numbers and the rank: dropout of a step does not depend
        on what ran before it, so a step that is resumed or run again needs no remembered state."""
        words = np.random.SeedSequence([*numbers, self.rank]).generate_state(1, np.uint64)
        torch.manual_seed(int(words[0] >> np.uint64(1)))

    def scaler_state(self) -> dict[str, Any]:
        """State of fp16's loss scaling; empty in other precisions."""
        scaler = self.accelerator.scaler
        return dict(scaler.state_dict()) if scaler is not None else {}

    def set_scaler_state(self, state: dict[str, Any]) -> None:
        if state and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state)

    def release(self) -> None:
        """Let go of the run's folder."""
        if self.lock is not None:
            self.lock.release()

    def close(self) -> None:
        """Leave the other ranks."""
        self.release()
        self.accelerator.end_training()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


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


def _buckets(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and sum(part.numel() for part in bucket) + tensor.numel() > BUCKET_ELEMENTS:
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


def _split(flat: Tensor, parts: list[Tensor]) -> tuple[Tensor, ...]:
    return flat.split([part.numel() for part in parts])
