"""Parameter groups, the table of optimizers, and the learning rate as a pure function of the step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from pal_dist.config.schema import OptimizerConfig


def learning_rate_factor(step: int, total: int, warmup: float, schedule: str = "linear") -> float:
    """Share of the peak rate at a step (from 0): up linearly over `warmup * total` steps, then down linearly to 0, or
    `constant`.

    A function of the optimizer step alone: neither ranks nor micro-batches change it.
    """
    rising = round(warmup * total)
    if step < rising:
        return (step + 1) / rising
    if schedule == "constant":
        return 1.0
    return max(total - step, 0) / max(total - rising, 1)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trained parameters in two groups: matrices decay; biases and LayerNorms, having one dimension, do not."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]


def _fused(model: nn.Module, groups: list[dict[str, Any]], rate: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=rate, fused=True)


def _eight_bit(name: str) -> Callable[[nn.Module, list[dict[str, Any]], float], torch.optim.Optimizer]:
    def build(model: nn.Module, groups: list[dict[str, Any]], rate: float) -> torch.optim.Optimizer:
        import bitsandbytes

        optimizer: Any = getattr(bitsandbytes.optim, name)(groups, lr=rate)
        # A manager of its own: the global one remembers the positions of other models' parameters.
        manager = object.__new__(bitsandbytes.optim.GlobalOptimManager)
        manager.initialize()
        for module in model.modules():
            if isinstance(module, nn.Embedding):  # as the authors advise: embeddings are unstable in 8 bits
                manager.register_module_override(module, "weight", {"optim_bits": 32})
        optimizer.mng = manager
        built: torch.optim.Optimizer = optimizer
        return built

    return build


OPTIMIZERS = {
    "adamw": _fused,
    "adamw_8bit": _eight_bit("AdamW8bit"),
    "paged_adamw_8bit": _eight_bit("PagedAdamW8bit"),
}


def build_optimizer(model: nn.Module, options: OptimizerConfig, rate: float) -> torch.optim.Optimizer:
    """The chosen optimizer over the model's trained parameters, on the device where the model already is."""
    return OPTIMIZERS[options.optimizer](model, parameter_groups(model, options.weight_decay), rate)
