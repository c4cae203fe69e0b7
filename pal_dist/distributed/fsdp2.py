"""PyTorch's fully_shard (FSDP2): each encoder layer is one unit, everything else (all tasks' parts) another.

All tasks' adapters and heads are in the outermost unit, which every micro-batch gathers and reduces whole: so ranks and
micro-batches see the same parameters whatever task they serve.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from pal_dist.distributed.replicated import Moments, ReplicatedBackend


class FSDP2Backend(ReplicatedBackend):
    def start(self) -> None:
        for parameter in self.model.parameters():
            distributed.broadcast(parameter.data, src=0)
        kind = next(self.model.parameters()).device.type
        mesh = init_device_mesh(kind, (self.group.ranks,))
        before = {id(parameter): name for name, parameter in self.model.named_parameters()}
        groups = [[before[id(parameter)] for parameter in group["params"]] for group in self.optimizer.param_groups]
        *lower, last = self.model.encoder_layers
        for layer in lower:
            fully_shard(layer, mesh=mesh)
        fully_shard(last, mesh=mesh, reshard_after_forward=False)  # backward wants it next
        fully_shard(self.model, mesh=mesh, reshard_after_forward=False)
        named = dict(self.model.named_parameters())
        for group, names in zip(self.optimizer.param_groups, groups, strict=True):
            group["params"] = [named[name] for name in names]
        self.names = {name: parameter for name, parameter in named.items() if parameter.requires_grad}
        self.trained = list(self.names.values())
        self.model.keep_no_weight_copies(self.model.encoder_layers)  # the others are whole throughout a pass

    @property
    def _optimizer_reads_flags(self) -> bool:
        return False  # clipping needs the norm over all ranks' shards

    def backward(self, loss: Tensor, *, last: bool) -> None:
        assert isinstance(self.model, FSDPModule)
        self.model.set_requires_gradient_sync(last)
        super().backward(loss * self.group.ranks, last=last)  # FSDP divides the sum by the number of ranks

    def reduce(self) -> None:
        """Done by the last backward pass."""

    def step(self, *, rate: float, max_norm: float) -> Tensor:
        gradients = [parameter.grad for parameter in self.trained if parameter.grad is not None]
        local: list[Any] = [grad.to_local() if isinstance(grad, DTensor) else grad for grad in gradients]
        overflow = self._overflow(local)
        norm: Any = nn.utils.clip_grad_norm_(self.trained, max_norm or float("inf"))
        self._update(rate, overflow)
        return torch.as_tensor(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    def parameter_states(self) -> Iterator[tuple[str, Tensor, Moments]]:
        for name, parameter in self.names.items():
            moments = {key: _whole(value) for key, value in self.optimizer.state.get(parameter, {}).items()}
            yield name, _whole(parameter.detach()), moments

    def load_optimizer_state(self, name: str, moments: Moments) -> None:
        parameter: Any = self.names[name]
        for key, value in moments.items():
            if isinstance(value, Tensor) and value.ndim:
                value = distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
            self.optimizer.state[parameter][key] = value

    def full_state_dict(self) -> Mapping[str, Tensor]:
        return {name: _whole(value).cpu() for name, value in self.model.state_dict().items()}


def _whole(value: Any) -> Any:
    return value.full_tensor() if isinstance(value, DTensor) else value
