"""The exact memory of one optimizer step, for any model, without the device: fake tensors, each storage followed.

Nothing is computed and nothing large is allocated, so a step that needs 100 GB is traced on a laptop in seconds.
"""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_map_only

from pal_dist.memory.allocator import reserved_bytes
from pal_dist.memory.cuda_emulation import CudaEmulation
from pal_dist.memory.devices import Device
from pal_dist.memory.tracker import (
    ACTIVATIONS,
    CATEGORIES,
    GRADIENTS,
    OPTIMIZER,
    PARAMETERS,
    WEIGHT_COPIES,
    Tracker,
    peak_of,
)
from pal_dist.models.attention import emulate_kernels_of

DTYPES = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}

PAGED_FROM = 100_000
"""Elements from which bitsandbytes' paged optimizers keep a state in pageable memory (get_state_buffer)."""

Loss = Callable[[Any, Any], Tensor]
"""(what the model returned, the batch) -> the loss."""


@dataclass(frozen=True)
class Trace:
    """What one steady-state optimizer step allocates. All figures in bytes of the device's own allocator."""

    peak: int
    """Highest sum of allocated bytes: what torch.cuda.max_memory_allocated would report, without cuBLAS's workspace."""
    categories: dict[str, int]
    """The peak, split: parameters, gradients, optimizer state, activations, weight copies, temporaries."""
    modules: dict[str, int]
    """Activations at the peak by the module that made them, largest first."""
    resident: int
    """Bytes alive between two steps."""
    at: str
    """Phase of the peak: `forward`, `backward` or `optimizer step`."""
    events: list[tuple[int, int]] = field(repr=False)
    """(block, +bytes or -bytes) in order, from the birth of the model on: what `replay` begins with, then the step."""
    timeline: list[tuple[str, dict[str, int]]] = field(repr=False)
    """(phase, bytes of each category) after every event of the step, for pictures."""

    def reserved(self, *, expandable: bool = False) -> int:
        """Most bytes that PyTorch's caching allocator takes from the device for this step (a replay)."""
        return reserved_bytes(self.events, expandable=expandable)


def trace(
    model: nn.Module | Callable[[], nn.Module],
    batches: Any,
    *,
    loss: Loss | None = None,
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] | None = None,
    device: Device | None = None,
    precision: str = "fp32",
    attention: str = "sdpa",
    checkpointing: bool = False,
    max_norm: float | None = 1.0,
    keeps_gradients: bool = False,
    softmax_keeps_input: bool = False,
    reduction: int = 0,
    limit: int | None = None,
    after: Callable[[nn.Module, int], None] | None = None,
    replay: bool = True,
) -> Trace:
    """Trace one optimizer step of any model, after the optimizer's state has come into being.

    Args:
        model: a module (only the shapes of its tensors are read), or a function that builds one, which then allocates
            nothing.
        batches: the micro-batches of the step, a list: each a dict (called as `model(**batch)`) or anything else
            (called as `model(batch)`). Only shapes and dtypes matter. A single batch may stand for a list of one.
        loss: from (output, batch); by default `output.loss`, else `output[0]`.
        optimizer: from the model; by default PyTorch's fused AdamW over all parameters that need gradients.
        device: whose kernels are emulated; None: this CPU's own semantics.
        precision: fp32, or fp16 or bf16 through autocast with float32 parameters.
        attention: sdpa, or `eager` to replace every scaled_dot_product_attention by its unfused form.
        checkpointing: call `model.gradient_checkpointing_enable` (Transformers) without reentrance.
        max_norm: gradients are clipped to this norm; None: not clipped.
        keeps_gradients: zeroed gradients stay allocated between steps (`zero_grad(set_to_none=False)`).
        softmax_keeps_input: as PyTorch did before 1.11.
        reduction: bytes of the flat buffer that sums gradients over ranks; 0: one rank.
        after: called with the module and the micro-batch's number after each backward pass, for methods that do more
            with gradients than add them up.
        replay: begin with a first micro-batch and its update, so that blocks lie for `Trace.reserved` where a real run
            would have put them. Without it the optimizer's state comes from gradients of zeros, which is the same step
            sooner. Where there is `after`, a whole first step comes before in any case: what it keeps must exist.
        limit: bytes above which an allocation raises torch.OutOfMemoryError, as a card of that size would.

    Returns: the trace. Raises ValueError for an unknown precision or a precision that the device lacks.
    """
    if precision not in DTYPES:
        raise ValueError(f"precision is one of {', '.join(DTYPES)}; found {precision!r}")
    steps: Sequence[Any] = batches if isinstance(batches, list) else [batches]
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake:
        module = _as_fake(model, fake).train()
        steps = [tree_map_only(Tensor, partial(_fake_tensor, fake), batch) for batch in steps]
    if checkpointing:
        _enable_checkpointing(module)
    update = (optimizer or _fused_adamw)(module)  # real: bitsandbytes computes its tables of quantiles here
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        # True of this CPU, not of the device whose step is traced.
        warnings.filterwarnings("ignore", message="Paged optimizers are not supported on CPU")
        stack.enter_context(fake)
        tracker = Tracker(module, granularity=512 if device and not device.is_cpu else 1)
        autocast: Callable[[], Any] = nullcontext
        again: Callable[[], Any] = nullcontext  # what layers that are computed again in backward run under
        if device is not None and not device.is_cpu:
            emulation = CudaEmulation(
                device, attention=attention, softmax_keeps_input=softmax_keeps_input,
                on_weight_copy=lambda tensor: tracker.mark([tensor], WEIGHT_COPIES),
            )  # fmt: skip
            tracker.on_exit = emulation.forget_copies  # a layer that is computed again has an autocast of its own
            autocast = again = partial(emulation.autocast, DTYPES[precision])
            stack.enter_context(emulate_kernels_of("cuda"))
            stack.enter_context(emulation)
        elif DTYPES[precision] is not None:
            autocast = partial(torch.autocast, "cpu", DTYPES[precision])
        stack.enter_context(tracker)
        tracker.mark(module.parameters(), PARAMETERS)
        tracker.mark(module.buffers(), PARAMETERS)
        phases: list[tuple[int, str]] = []

        def run(batch: Any, number: int) -> None:
            """One micro-batch, forward and backward; it is on the device for as long as that takes."""
            inputs = _tensors([batch])
            tracker.mark(inputs, ACTIVATIONS)
            phases.append((len(tracker.events), "forward"))
            with autocast():
                output = module(**batch) if isinstance(batch, dict) else module(batch)
                value = (loss or _default_loss)(output, batch)
            phases.append((len(tracker.events), "backward"))
            with again():
                (value / len(steps)).backward()
            if after is not None:
                after(module, number)
            tracker.forget(inputs)

        first = steps if after else steps[:1] if replay else []
        _warm_up(module, run, first, update, tracker)
        update.zero_grad(set_to_none=not keeps_gradients)
        start, resident = len(tracker.events), tracker.bytes
        tracker.limit = limit
        phases.clear()
        for number, batch in enumerate(steps):
            run(batch, number)
        phases.append((len(tracker.events), "optimizer step"))
        if reduction:
            torch.empty(reduction, dtype=torch.uint8)
        if max_norm is not None:
            nn.utils.clip_grad_norm_(module.parameters(), max_norm)
        update.step()
        update.zero_grad(set_to_none=not keeps_gradients)
        return summarise(tracker, start, resident, phases)


def _warm_up(
    module: nn.Module, run: Callable[[Any, int], None], steps: Sequence[Any], update: torch.optim.Optimizer,
    tracker: Tracker,
) -> None:  # fmt: skip
    """A first step on some micro-batches, after which the optimizer's state exists."""
    for number, batch in enumerate(steps):
        run(batch, number)
    for parameter in module.parameters():
        if parameter.requires_grad and parameter.grad is None:  # another task's, or no micro-batch was asked for
            parameter.grad = torch.zeros_like(parameter)
            tracker.mark([parameter.grad], GRADIENTS)
    update.step()
    for entries in update.state.values():
        kept = [value for value in entries.values() if isinstance(value, Tensor)]
        tracker.mark(kept, OPTIMIZER)
        if getattr(update, "is_paged", False) and tracker.granularity > 1:  # pages of such a size leave for the host
            tracker.forget(value for value in kept if value.numel() >= PAGED_FROM)


def summarise(tracker: Tracker, start: int, resident: int, phases: list[tuple[int, str]]) -> Trace:
    """The step between event `start` and now; `phases` are (first event, name), `resident` what was alive before."""
    tracker.categorise()
    events = list(tracker.since(start))
    peak, at = peak_of(events)
    before = len(events) - (len(tracker.events) - start)  # events that only restate what was alive before the step
    alive: Counter[int] = Counter()
    totals = dict.fromkeys(CATEGORIES, 0)
    timeline: list[tuple[str, dict[str, int]]] = []
    upcoming = iter([*phases[1:], (1 << 62, "")])
    phase, (following, name) = phases[0][1], next(upcoming)
    categories, modules, where = totals, Counter[str](), phase
    for number, (index, size) in enumerate(events):
        while number >= before and start + number - before >= following:
            phase, (following, name) = name, next(upcoming)
        block = tracker.blocks[index]
        totals[str(block.category)] += size
        alive[index] += size
        if number >= before:
            timeline.append((phase, dict(totals)))
        if number == at:
            categories, where = dict(totals), phase
            for key, held in alive.items():
                if held and tracker.blocks[key].category == "activations":
                    modules[tracker.blocks[key].module] += held
    return Trace(peak, categories, dict(modules.most_common()), resident, where, tracker.events, timeline)


def _enable_checkpointing(module: Any) -> None:
    """As Transformers does it, by the name that this release has for it."""
    if hasattr(module, "activation_checkpointing_enable"):
        module.activation_checkpointing_enable({"use_reentrant": False})
    else:
        module.gradient_checkpointing_enable({"use_reentrant": False})


def _as_fake(model: nn.Module | Callable[[], nn.Module], fake: FakeTensorMode) -> nn.Module:
    """The module with fake tensors of the same shapes."""
    if not isinstance(model, nn.Module):
        return model()
    if any(isinstance(parameter, FakeTensor) for parameter in model.parameters()):
        raise ValueError("the model holds fake tensors of another mode: pass a function that builds it")
    copies: dict[int, Any] = {}
    with fake:
        for tensor in chain(model.parameters(), model.buffers()):
            copied = torch.empty(tensor.shape, dtype=tensor.dtype)
            if isinstance(tensor, nn.Parameter):
                copied = nn.Parameter(copied, requires_grad=tensor.requires_grad)
            copies[id(tensor)] = copied
    return copy.deepcopy(model, copies)


def _fake_tensor(fake: FakeTensorMode, tensor: Tensor) -> Tensor:
    if isinstance(tensor, FakeTensor):
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype)


def _tensors(values: Any) -> list[Tensor]:
    found: list[Tensor] = []
    tree_map_only(Tensor, found.append, values)
    return found


def _default_loss(output: Any, _batch: Any) -> Tensor:
    value = getattr(output, "loss", None)
    value = output[0] if value is None else value
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise ValueError("the model returns no loss: give the batch labels, or pass loss=...")
    return value


def _fused_adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5, fused=True)
