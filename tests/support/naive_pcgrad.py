"""PCGrad as it is often written, and the memory of its step: all tasks' graphs alive, whole gradients copied."""

from __future__ import annotations

from typing import Any

import torch

from pal_dist.memory import trace
from pal_dist.memory.closed_form import StepOptions
from pal_dist.models.multi_task import MultiTaskBert
from tests.support.random_runs import loss_of


def trace_of(config: Any, options: StepOptions, device: Any, batches: list[Any], loss: Any, after: Any = None) -> Any:
    def model() -> torch.nn.Module:
        built = MultiTaskBert(config)
        return built if after is not None or loss is loss_of else AllTasks(built)

    return trace(
        model,
        batches,
        loss=loss,
        device=device,
        precision=options.precision,
        after=after,
        optimizer=lambda model: torch.optim.AdamW(model.parameters(), fused=True),
    )


class AllTasks(torch.nn.Module):
    def __init__(self, model: MultiTaskBert):
        super().__init__()
        self.model = model

    def forward(self, batches: list[Any]) -> list[torch.Tensor]:
        return [self.model(batch) for batch in batches]


def naive_pcgrad(outputs: list[torch.Tensor], batches: list[Any]) -> torch.Tensor:
    """All tasks' graphs alive; a flat gradient of everything for each task, and a projected copy of each."""
    losses = [loss_of(logits, batch) for logits, batch in zip(outputs, batches, strict=True)]
    parameters = parameters_behind(losses)
    flat = []
    for loss in losses:
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        parts = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]
        flat.append(torch.cat([part.flatten() for part in parts]))
    turned = [gradient.clone() for gradient in flat]
    for gradient in turned:
        for other in flat:
            gradient -= (gradient @ other) / other.square().sum() * other
    total = torch.stack(turned).sum(dim=0)
    for parameter, piece in zip(parameters, total.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = piece.view_as(parameter)
    return torch.zeros((), requires_grad=True)


def parameters_behind(losses: list[torch.Tensor]) -> list[torch.Tensor]:
    """The leaves of the losses' graphs."""
    leaves: dict[int, torch.Tensor] = {}
    waiting, seen = [loss.grad_fn for loss in losses], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves[id(node.variable)] = node.variable
        waiting += [following for following, _ in node.next_functions]
    return list(leaves.values())
