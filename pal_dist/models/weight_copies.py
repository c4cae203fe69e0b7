"""Weights as products want them: in 16 bits, query, key and value as one matrix, heads padded.

Copies are made once per optimizer step, not once per micro-batch: they are kept until `forget`. The gradients of copies
that were made together turn into gradients of their parameters together, in as few passes as formats allow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pal_dist.models.precision import note_weight_copies


@dataclass(frozen=True)
class CopyForm:
    """What copies are to look like."""

    dtype: torch.dtype
    heads: int
    width: int
    """Of a head, in the parameters."""
    padded_width: int
    """Of a head, in the copies; what is added is zero."""

    @property
    def pads(self) -> bool:
        return self.width != self.padded_width


Gradients = Sequence[Tensor | None]
"""None: nothing was computed with that copy."""


class Recipe(Protocol):
    """How the parameters of a module become copies, and the copies' gradients the parameters'."""

    def copies(self, form: CopyForm, parameters: Sequence[Tensor]) -> tuple[Tensor, ...]: ...

    def gradients(self, form: CopyForm, gradients: Gradients, dtype: torch.dtype) -> list[Tensor | None]: ...


class WeightCopies:
    """The copies of a module's parameters."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.keeps = True
        """Between micro-batches. Not where parameters are whole only while their layer runs (ZeRO-3, FSDP2)."""
        self._kept: tuple[tuple[Any, ...], tuple[Tensor, ...]] | None = None

    def forget(self) -> None:
        """The parameters change, or have changed."""
        self._kept = None

    def of(self, form: CopyForm, parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The copies, differentiable; in the order of the recipe."""
        copies: tuple[Tensor, ...] = _Copy.apply(self, form, *parameters)
        return copies

    def data_of(self, form: CopyForm, parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The same without a graph; made now, or kept from earlier in the step."""
        made_of = (form, *(parameter._version for parameter in parameters))
        if self._kept is not None and self._kept[0] == made_of:
            return self._kept[1]
        copies = self.recipe.copies(form, parameters)
        own = {id(parameter) for parameter in parameters}  # what serves as it is, is no copy
        note_weight_copies(copy for copy in copies if id(copy) not in own)
        if self.keeps:
            self._kept = made_of, copies
        return copies


class _Copy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, copies: WeightCopies, form: CopyForm, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.recipe, ctx.form, ctx.dtype = copies.recipe, form, parameters[0].dtype
        ctx.set_materialize_grads(False)
        return tuple(copy.detach() for copy in copies.data_of(form, parameters))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        return None, None, *ctx.recipe.gradients(ctx.form, gradients, ctx.dtype)


@dataclass(frozen=True)
class AttentionRecipe:
    """(joined weight (3 H W, D), joined bias (3 H W,), *others) of weights (H W', D) of query, key and value, their
    biases, and others."""

    def copies(self, form: CopyForm, parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
        weight, bias = joined(parameters[:3], form), joined(parameters[3:6], form)
        return weight, bias, *cast_together(parameters[6:], form.dtype)

    def gradients(self, form: CopyForm, gradients: Gradients, dtype: torch.dtype) -> list[Tensor | None]:
        weight, bias, *others = gradients
        assert weight is not None, "all of them are used together"
        assert bias is not None, "all of them are used together"
        present = [other for other in others if other is not None]
        if not form.pads:
            weight, bias, *present = cast_together([weight, bias, *present], dtype)
        else:
            present = cast_together(present, dtype)
        wide = iter(present)
        return [
            *separated(weight, form, 3, dtype),
            *separated(bias, form, 3, dtype),
            *(None if other is None else next(wide) for other in others),
        ]


def cast_together(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Each in this format, all in one pass."""
    if not tensors or tensors[0].dtype == dtype:
        return list(tensors)
    results = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
    torch._foreach_copy_(results, list(tensors))
    return results


def joined(parts: Sequence[Tensor], form: CopyForm) -> Tensor:
    """n matrices (H W', D), or vectors (H W',), behind one another, each head padded with zeros: (n H W, D)."""
    count, first = len(parts), parts[0]
    if not form.pads:
        result = torch.empty((count, *first.shape), dtype=form.dtype, device=first.device)
        torch._foreach_copy_(list(result.unbind()), list(parts))
        return result.flatten(0, 1)
    tail = first.shape[1:]
    result = torch.zeros((count, form.heads, form.padded_width, *tail), dtype=form.dtype, device=first.device)
    result[:, :, : form.width].copy_(torch.cat(list(parts)).view(count, form.heads, form.width, *tail))
    return result.flatten(0, 2)


def separated(whole: Tensor, form: CopyForm, count: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The `count` matrices or vectors that `joined` has joined, in this format; views where nothing has to change."""
    tail = whole.shape[1:]
    if form.pads:
        parts = whole.view(count, form.heads, form.padded_width, *tail)[:, :, : form.width]
        whole = parts.to(dtype, memory_format=torch.contiguous_format)
    return whole.to(dtype).reshape(count, form.heads * form.width, *tail).unbind()


class TiedGradient:
    """The gradient of a weight that many products of one pass share, summed by the products themselves."""

    def __init__(self) -> None:
        self.uses = 0
        self.total: Tensor | None = None


class _TiedLinear(torch.autograd.Function):
    """A linear layer whose weight other layers of the pass share: each adds to one gradient as it goes backward, and
    the first of them, whose backward pass is the last, hands it on."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, bias: Tensor, tied: TiedGradient) -> Tensor:
        ctx.tied, ctx.is_first = tied, tied.uses == 0
        tied.uses += 1
        ctx.save_for_backward(values, weight)
        return torch.addmm(bias, values, weight.t())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (values, weight), tied = gradients, ctx.saved_tensors, ctx.tied
        if tied.total is None:
            tied.total = gradient.t() @ values
        else:
            tied.total.addmm_(gradient.t(), values)
        to_weight = None
        if ctx.is_first:
            to_weight, tied.total = tied.total, None
        return gradient @ weight if ctx.needs_input_grad[0] else None, to_weight, gradient.sum(0), None


def tied_linear(values_TD: Tensor, weight: Tensor, bias: Tensor, tied: TiedGradient) -> Tensor:
    """`F.linear` of a weight that is used again and again in one pass; `tied` is the pass's own."""
    result: Tensor = _TiedLinear.apply(values_TD, weight, bias, tied)
    return result


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
