"""The replicated strategies (one process, DDP), and so what every other strategy's backend must offer too."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, distributed, nn

from pal_dist.distributed.precision import LossScale
from pal_dist.distributed.process_group import ProcessGroup
from pal_dist.models.multi_task import MultiTaskBert

BUCKET_ELEMENTS = 32 * 1024 * 1024
"""Gradient elements summed over the ranks in one collective: large enough to be limited by bandwidth alone."""

Moments = dict[str, Tensor | float]
"""An optimizer's state of one parameter, each entry whole."""


class ReplicatedBackend:
    """Every process holds parameters, gradients and optimizer state; gradients are summed once per optimizer step.

    Micro-steps are local: no collective runs in forward or backward. So any mix of tasks gives the gradient of one
    process with one big batch, and a parameter that no served task uses keeps no gradient, on every rank.
    """

    def __init__(
        self, model: MultiTaskBert, optimizer: torch.optim.Optimizer, group: ProcessGroup, loss_scale: LossScale | None
    ):
        self.model, self.optimizer, self.group, self.loss_scale = model, optimizer, group, loss_scale
        self.names = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.trained = list(self.names.values())
        self.buffer = torch.empty(0)

    def start(self) -> None:
        """Ranks begin with rank 0's parameters."""
        if self.group.ranks > 1:
            everything = [parameter.data for parameter in self.model.parameters()]
            largest = max(sum(part.numel() for part in bucket) for bucket in _buckets(everything))
            # Allocated once, so that no rank can run out of memory while the others wait for it in a collective.
            self.buffer = torch.empty(largest, dtype=everything[0].dtype, device=everything[0].device)
            self._through_buffer(everything, partial(distributed.broadcast, src=0))

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add a micro-batch's gradients to this rank's; `last`: none follows in this step."""
        (loss if self.loss_scale is None else loss * self.loss_scale.scale).backward()

    def step(self, *, rate: float, max_norm: float) -> Tensor:
        """Sum over the ranks, clip, update with this learning rate, and clear. Returns the norm before clipping."""
        self.reduce()
        gradients = [parameter.grad for parameter in self.trained if parameter.grad is not None]
        overflow = None if self.loss_scale is None else self.loss_scale.unscale(gradients)
        norm = self._clip(gradients, max_norm or float("inf"))
        self._update(rate, overflow)
        return norm

    def _clip(self, gradients: list[Tensor], max_norm: float) -> Tensor:
        """Have the update use gradients of at most this norm. Returns the norm before."""
        if not self._optimizer_reads_flags:
            return nn.utils.clip_grad_norm_(self.trained, max_norm)
        norm = nn.utils.get_total_norm(gradients)
        # The update divides by this as it goes: one pass over the gradients less.
        self.optimizer.grad_scale = ((norm + 1e-6) / max_norm).clamp(min=1.0)  # type: ignore[attr-defined]
        return norm

    @property
    def _optimizer_reads_flags(self) -> bool:
        """The update itself divides gradients by a scale and leaves out a step that overflowed: PyTorch's fused AdamW
        does, for which scale and flag are in float32."""
        fused = isinstance(self.optimizer, torch.optim.AdamW) and bool(self.optimizer.defaults.get("fused"))
        return fused and self.trained[0].dtype == torch.float32

    def _overflow(self, gradients: list[Tensor]) -> Tensor | None:
        """Unscale gradients that are not the same on every rank: the flag of all ranks. None: nothing is scaled."""
        if self.loss_scale is None:
            return None
        overflow = self.loss_scale.unscale(gradients)
        return overflow.fill_(float(self.group.vote(int(overflow.item()))))

    def _update(self, rate: float, overflow: Tensor | None) -> None:
        """Apply the gradients, unless they overflowed, and clear them. Every rank has the same flag."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if overflow is not None and self._optimizer_reads_flags:
            self.optimizer.found_inf = overflow  # type: ignore[attr-defined]
            self.optimizer.step()
        elif overflow is None or not overflow.item():  # this optimizer has to be told before it begins
            self.optimizer.step()
        if self.loss_scale is not None and overflow is not None:
            self.loss_scale.update(overflow)
        self.discard_gradients()

    def reduce(self) -> None:
        """Sum the gradients over the ranks. Which parameters have one is the same everywhere, by construction."""
        if self.group.ranks > 1:
            gradients = [parameter.grad for parameter in self.trained if parameter.grad is not None]
            self._through_buffer(gradients, distributed.all_reduce)

    def discard_gradients(self) -> None:
        """Forget the gradients. None, not zero: AdamW then leaves tasks that are not served alone."""
        for parameter in self.trained:
            parameter.grad = None

    def parameter_states(self) -> Iterator[tuple[str, Tensor, Moments]]:
        """(name, whole value, optimizer's state) of each trained parameter. Every rank must go through all of them."""
        for name, parameter in self.names.items():
            yield name, parameter.data, dict(self.optimizer.state.get(parameter, {}))

    def load_optimizer_state(self, name: str, moments: Moments) -> None:
        """Put a parameter's optimizer state in place (its value was there before `start`)."""
        parameter = self.names[name]
        for key, value in moments.items():
            entry = value.to(parameter.device) if isinstance(value, Tensor) else value
            self.optimizer.state[parameter][key] = entry

    def full_state_dict(self) -> Mapping[str, Tensor]:
        """The model's whole state, as for saving. Every rank must call it."""
        return self.model.state_dict()

    def _through_buffer(self, tensors: list[Tensor], collective: Callable[[Tensor], object]) -> None:
        """Run a collective over many tensors in few large pieces."""
        for bucket in _buckets(tensors):
            flat = self.buffer[: sum(part.numel() for part in bucket)]
            split = flat.split([part.numel() for part in bucket])
            pieces = [piece.view_as(part) for piece, part in zip(split, bucket, strict=True)]
            torch._foreach_copy_(pieces, bucket)
            try:
                collective(flat)
            except torch.OutOfMemoryError:  # the library's own buffers: the others are waiting, so once more
                torch.cuda.empty_cache()
                collective(flat)
            torch._foreach_copy_(bucket, pieces)


def _buckets(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and sum(part.numel() for part in bucket) + tensor.numel() > BUCKET_ELEMENTS:
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
