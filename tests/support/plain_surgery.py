"""PCGrad and GradVac written as the papers write them: plain loops over whole gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pal_dist.optim.gradient_surgery import TARGET_RATE

Vectors = list[torch.Tensor]


def plain_pcgrad(gradients: Vectors, others: Any) -> torch.Tensor:
    """Algorithm 1 of Yu et al. as it is written, over whole vectors."""
    total = torch.zeros_like(gradients[0])
    for task, order in enumerate(others):
        turned = gradients[task].clone()
        for other in order:
            dot = turned @ gradients[other]
            if dot < 0:
                turned -= dot / gradients[other].square().sum() * gradients[other]
        total += turned
    return total


def plain_gradvac(gradients: Vectors, others: Any, targets: dict[tuple[int, int], float]) -> torch.Tensor:
    """Algorithm 1 of Wang et al., whole model as one group; `targets` are updated."""
    total = torch.zeros_like(gradients[0])
    for task, order in enumerate(others):
        turned = gradients[task].clone()
        for other in order:
            against = gradients[other]
            cosine = float(turned @ against / (turned.norm() * against.norm()))
            target = targets.get((task, other), 0.0)
            if cosine < target:
                sine, wanted = np.sqrt(1 - cosine**2), np.sqrt(1 - target**2)
                turned = (
                    turned + turned.norm() * (target * sine - cosine * wanted) / (against.norm() * wanted) * against
                )
            targets[task, int(other)] = (1 - TARGET_RATE) * target + TARGET_RATE * cosine
        total += turned
    return total
