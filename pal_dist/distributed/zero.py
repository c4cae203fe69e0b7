"""DeepSpeed's ZeRO, held to the same semantics: micro-steps add to local gradients, which are reduced once a step.

DeepSpeed is spoken to directly, not through Accelerator.prepare, which steps inside of backward, replaces AdamW by an
Adam with coupled decay under offload, and steps schedulers once a process (accelerate 1.15, accelerator.py).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pal_dist.core.units import round_up
from pal_dist.distributed.precision import LossScale
from pal_dist.distributed.process_group import ProcessGroup
from pal_dist.distributed.replicated import Moments, ReplicatedBackend
from pal_dist.distributed.strategy import Strategy
from pal_dist.models.multi_task import MultiTaskBert

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's, by PyTorch's names. (8-bit optimizers are refused under ZeRO.)"""


class ZeroBackend(ReplicatedBackend):
    """ZeRO 1 and 2: whole parameters, shared-out optimizer state. ZeRO 3: parameters too are shared out.

    Inside of `coalesce_grad_reduction` a backward pass leaves its gradients where they are; leaving it reduces them in
    one pass. So a step that fails can be dropped, and ranks may serve different tasks at the same time.
    """

    def __init__(
        self,
        model: MultiTaskBert,
        optimizer: torch.optim.Optimizer,
        group: ProcessGroup,
        loss_scale: LossScale | None,
        *,
        strategy: Strategy,
    ):
        super().__init__(model, optimizer, group, loss_scale)
        self.strategy = strategy
        self.collecting: AbstractContextManager[None] | None = None

    def start(self) -> None:
        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        import deepspeed

        # The shared-memory collective of CPUs would be compiled at the first start, which takes a minute.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed|deepspeed")
        for parameter in self.model.parameters():  # ranks begin with rank 0's parameters
            torch.distributed.broadcast(parameter.data, src=0)
        if self.strategy.stage == 3:
            for module in self.model.modules_read_whole():
                deepspeed.utils.set_z3_leaf_module(module, True)
        config = self.strategy.deepspeed_config(max_norm=0.0)
        self.wrapped, *_ = deepspeed.initialize(
            model=self.model, optimizer=self.optimizer, config=config, dist_init_required=False
        )
        self.inner = self.optimizer
        self.optimizer: Any = self.wrapped.optimizer
        if self.strategy.stage == 3:
            self.model.keep_no_weight_copies()
            for reader, parameter in self.model.parameters_read_directly():
                deepspeed.zero.register_external_parameter(reader, parameter)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        if self.collecting is None:
            self.collecting = self.wrapped.coalesce_grad_reduction()
            self.collecting.__enter__()
        loss_scale = 1.0 if self.loss_scale is None else self.loss_scale.scale
        (loss * (loss_scale * self.group.ranks)).backward()  # DeepSpeed divides the sum by the number of ranks

    def step(self, *, rate: float, max_norm: float) -> Tensor:
        assert self.collecting is not None, "a step needs a backward pass"
        gradients = [parameter.grad for parameter in self.trained if parameter.grad is not None]
        overflow = self._overflow(gradients)
        if overflow is not None and overflow.item():  # no gradient is reduced then
            self._update(rate, overflow)
            return torch.tensor(float("inf"))
        self.reduce()
        self.optimizer.clip_grad = max_norm
        self._update(rate, overflow)
        norm = self.optimizer._global_grad_norm
        return torch.as_tensor(norm)

    def reduce(self) -> None:
        """Leave the context, which reduces. Parameters that this rank has not used have a gradient of zero."""
        for parameter in self.trained:
            if parameter.grad is None:
                shape = getattr(parameter, "ds_shape", parameter.shape)
                parameter.grad = torch.zeros(shape, dtype=parameter.dtype, device=parameter.device)
        collecting, self.collecting = self.collecting, None
        if collecting is not None:
            collecting.__exit__(None, None, None)

    def _partitions(self) -> list[Tensor]:
        """This rank's flat float32 pieces: what the optimizer really updates."""
        inner = self.optimizer
        pieces: list[Tensor] = (
            inner.fp32_partitioned_groups_flat if self.strategy.stage == 3 else inner.single_partition_of_fp32_groups
        )
        return pieces

    def _link(self) -> None:
        """Let each parameter find its state in the flat pieces. DeepSpeed does so once, after the first of several
        parameter groups was updated, when the others have no state yet."""
        if self.strategy.stage < 3:
            self.optimizer._hp_optimizer_states_linked = False
            self.optimizer._lazy_init_hp_params_optimizer_state()

    def parameter_states(self) -> Iterator[tuple[str, Tensor, Moments]]:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        self._link()
        entries: dict[str, Any] = next(iter(self.inner.state.values()), {})
        # Every step moves every parameter, so all of them have been updated as often.
        updates = torch.as_tensor(float(entries.get("step", 0.0)), dtype=torch.float32)
        for name, parameter in self.names.items():
            moments: Moments = {key: safe_get_full_optimizer_state(parameter, key) for key in MOMENTS}
            yield name, safe_get_full_fp32_param(parameter), {**moments, "step": updates.clone()}

    def load_optimizer_state(self, name: str, moments: Moments) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        if not any(self.inner.state.values()):
            for piece in self._partitions():
                self.inner.state[piece] = {key: torch.zeros_like(piece) for key in MOMENTS}
            self._link()
        for piece in self._partitions():
            self.inner.state[piece]["step"] = torch.as_tensor(float(moments["step"]), dtype=torch.float32)
        for key in MOMENTS:
            value = moments[key]
            assert isinstance(value, Tensor)
            if self.strategy.stage < 3:
                safe_set_full_optimizer_state(self.names[name], value, key)
                continue
            # Its counterpart for stage 3 fails where a parameter has fewer elements than there are ranks.
            padding = round_up(value.numel(), self.group.ranks) - value.numel()
            padded = F.pad(value.flatten(), (0, padding))
            safe_set_local_optimizer_state(self.names[name], padded.chunk(self.group.ranks)[self.group.rank], key)

    def full_state_dict(self) -> Mapping[str, Tensor]:
        if self.strategy.stage < 3:
            return self.model.state_dict()
        from deepspeed.runtime.zero.partition_parameters import GatheredParameters

        values: dict[str, Tensor] = {}
        for name, parameter in self.model.named_parameters():
            with GatheredParameters([parameter]):
                values[name] = parameter.data.detach().cpu().clone()
        return values
