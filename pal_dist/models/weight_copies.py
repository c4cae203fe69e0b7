"""Weights as the products of a layer want them: in 16 bits, query, key and value as one matrix, heads padded.

Copies are made once per optimizer step, not once per micro-batch: they are kept until `forget`. The gradients of one
module's copies turn into gradients of its parameters together, in as few passes as formats allow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pal_dist.models.precision import note_weight_copies


@dataclass(frozen=True)
class CopyForm:
    """What copies are to look like."""

    dtype: torch.dtype
    heads: int
    padded_width: int
    """Width of a head in the copies."""

    def pads(self, shape: torch.Size) -> bool:
        """Whether heads of a weight or bias of this shape are narrower."""
        return shape[0] != self.heads * self.padded_width


class WeightCopies:
    """The copies of one module's parameters: first query, key, value weights and biases, then any others."""

    def __init__(self) -> None:
        self.keeps = True
        """Between micro-batches. Not where parameters are whole only while their layer runs (ZeRO-3, FSDP2)."""
        self._kept: tuple[tuple[Any, ...], tuple[Tensor, ...]] | None = None

    def forget(self) -> None:
        """The parameters change, or have changed."""
        self._kept = None

    def of(self, form: CopyForm, parameters: Sequence[nn.Parameter]) -> tuple[Tensor, ...]:
        """(joined weight (3 H W, D), joined bias (3 H W,), *others), differentiable.

        Args:
            parameters: weights (H W', D) of query, key and value, their biases, others.
        """
        copies: tuple[Tensor, ...] = _Copy.apply(self, form, *parameters)
        return copies

    def data_of(self, form: CopyForm, parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The same without a graph; made now, or kept from earlier in the step."""
        made_of = (form, *(parameter._version for parameter in parameters))
        if self._kept is not None and self._kept[0] == made_of:
            return self._kept[1]
        weight, bias = joined(parameters[:3], form), joined(parameters[3:6], form)
        others = [torch.empty_like(other, dtype=form.dtype) for other in parameters[6:]]
        if others:
            torch._foreach_copy_(others, list(parameters[6:]))
        copies = (weight, bias, *others)
        note_weight_copies(copies)
        if self.keeps:
            self._kept = made_of, copies
        return copies


class _Copy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, copies: WeightCopies, form: CopyForm, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.form, ctx.shapes = form, [parameter.shape for parameter in parameters]
        ctx.dtype = parameters[0].dtype
        return tuple(copy.detach() for copy in copies.data_of(form, parameters))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        form, shapes, wide = ctx.form, ctx.shapes, list(gradients)
        if form.dtype != ctx.dtype and not form.pads(shapes[0]):
            wide = [torch.empty_like(gradient, dtype=ctx.dtype) for gradient in gradients]
            torch._foreach_copy_(wide, list(gradients))
        weights, biases = (separated(wide[place], form, shapes[3 * place], ctx.dtype) for place in (0, 1))
        return None, None, *weights, *biases, *(other.to(ctx.dtype) for other in wide[2:])


class _ProjectJoined(torch.autograd.Function):
    """One product for several projections of the same values. It keeps parameters and not their joined copy, so that
    whoever shares parameters out may let go of them until backward."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, count: int, *parameters: Tensor) -> Tensor:
        weights, biases = parameters[:count], parameters[count:]
        ctx.count = count
        ctx.save_for_backward(values, *weights)
        return torch.addmm(torch.cat(biases), values, torch.cat(weights).t())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (values, *weights) = gradients, ctx.saved_tensors
        to_values = gradient @ torch.cat(weights) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[2]:
            return to_values, None, *[None] * (2 * ctx.count)
        to_weights = (gradient.t() @ values).view(ctx.count, *weights[0].shape).unbind()
        return to_values, None, *to_weights, *gradient.sum(0).view(ctx.count, -1).unbind()


def project_joined(values_TD: Tensor, linears: Sequence[nn.Linear]) -> Tensor:
    """(T, n D'): what each of n linear layers of one shape makes of the values, side by side."""
    weights, biases = [linear.weight for linear in linears], [linear.bias for linear in linears]
    projected: Tensor = _ProjectJoined.apply(values_TD, len(linears), *weights, *biases)
    return projected


def joined(parts: Sequence[Tensor], form: CopyForm) -> Tensor:
    """Three matrices (H W', D), or vectors (H W',), behind one another, each head padded with zeros: (3 H W, D)."""
    first = parts[0]
    width, tail = len(first) // form.heads, first.shape[1:]
    if not form.pads(first.shape):
        result = torch.empty((3, *first.shape), dtype=form.dtype, device=first.device)
        torch._foreach_copy_(list(result.unbind()), list(parts))
        return result.flatten(0, 1)
    result = torch.zeros((3, form.heads, form.padded_width, *tail), dtype=form.dtype, device=first.device)
    for place, part in zip(result.unbind(), parts, strict=True):
        place[:, :width].copy_(part.unflatten(0, (form.heads, width)))
    return result.flatten(0, 2)


def separated(whole: Tensor, form: CopyForm, shape: torch.Size, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """What `joined` has joined, of this shape each, in this format; views where there is nothing to change."""
    if not form.pads(shape):
        return whole.to(dtype).view(3, *shape).unbind()
    width = shape[0] // form.heads
    parts = whole.view(3, form.heads, form.padded_width, *shape[1:])[:, :, :width]
    return parts.to(dtype).reshape(3, *shape).unbind()
