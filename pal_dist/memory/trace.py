"""The exact memory of one optimizer step, for any model, without the device: fake tensors, each storage followed.

Nothing is computed and nothing large is allocated, so a step that needs 100 GB is traced on a laptop in seconds.
"""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any, Protocol, runtime_checkable

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
    WORKSPACES,
    Tracker,
    peak_of,
)
from pal_dist.models.precision import Emulation, KernelTarget, emulate

DTYPES = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}

PAGED_FROM = 100_000
"""Elements from which bitsandbytes' paged optimizers keep a state in pageable memory (get_state_buffer)."""

Loss = Callable[[Any, Any], Tensor]
"""(what the model returned, the batch) -> the loss."""


@runtime_checkable
class KeepsWeightCopies(Protocol):
    """A module that keeps copies of its weights in 16 bits until it is told that they change."""

    def forget_weight_copies(self) -> None: ...


@dataclass(frozen=True)
class Trace:
    """What one steady-state optimizer step allocates. All figures in bytes of the device's own allocator."""

    peak: int
    """Highest sum of allocated bytes: what torch.cuda.max_memory_allocated would report."""
    categories: dict[str, int]
    """The peak, split as `tracker.CATEGORIES` names its parts."""
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
    limit: int | None = None,
    after: Callable[[nn.Module, int], None] | None = None,
    replay: bool = True,
) -> Trace:
    """Trace one optimizer step of any model, after the optimizer's state has come into being.

    Args:
        model: a module (only its shapes are read), or a function that builds one, which then allocates nothing.
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
        limit: bytes above which an allocation raises torch.OutOfMemoryError, as a card of that size would.
        after: called with the module and the micro-batch's number after each backward pass, for methods that do more
            with gradients than add them up.
        replay: begin with a micro-batch and its update, so that blocks lie for `Trace.reserved` where a real run has
            them. Without it the optimizer's state comes from gradients of zeros, which is the same step sooner. Where
            there is `after`, a whole first step comes before in any case: what it keeps must exist.

    Returns: the trace. Raises ValueError for an unknown precision or a precision that the device lacks.
    """
    if precision not in DTYPES:
        raise ValueError(f"precision is one of {', '.join(DTYPES)}; found {precision!r}")
    micro_batches: list[Any] = batches if isinstance(batches, list) else [batches]
    fake_tensors = FakeTensorMode(allow_non_fake_inputs=True)
    with fake_tensors:
        module = _as_fake(model).train()
        micro_batches = [_as_fake_batch(batch) for batch in micro_batches]
    if checkpointing:
        _enable_checkpointing(module)
    update = (optimizer or _fused_adamw)(module)  # real: bitsandbytes computes its tables of quantiles here
    step = _TracedStep(module, micro_batches, loss or _default_loss, update, after, max_norm, keeps_gradients)
    with fake_tensors, step.followed(device, DTYPES[precision], attention, softmax_keeps_input):
        return step.run(replay=replay, limit=limit)


class _TracedStep:
    """An optimizer step on fake tensors, and what follows every storage of it."""

    def __init__(
        self,
        module: nn.Module,
        micro_batches: list[Any],
        loss: Loss,
        update: torch.optim.Optimizer,
        after: Callable[[nn.Module, int], None] | None,
        max_norm: float | None,
        keeps_gradients: bool,
    ):
        self.module, self.micro_batches, self.loss, self.update = module, micro_batches, loss, update
        self.after, self.max_norm, self.keeps_gradients = after, max_norm, keeps_gradients
        self.phases: list[tuple[int, str]] = []
        """(number of its first event, name)."""
        self.autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
        self.autocast_of_backward: Callable[[], AbstractContextManager[Any]] = nullcontext
        """What layers that are computed again in backward run under."""

    @contextmanager
    def followed(
        self, device: Device | None, dtype: torch.dtype | None, attention: str, softmax_keeps_input: bool
    ) -> Iterator[None]:
        """Within, storages are counted, and a GPU's kernels are emulated. Fake tensors must be on already."""
        emulated = device if device is not None and not device.is_cpu else None
        self.tracker = tracker = Tracker(self.module, granularity=1 if emulated is None else 512)
        with ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            # True of this CPU, not of the device whose step is traced.
            warnings.filterwarnings("ignore", message="Paged optimizers are not supported on CPU")
            if emulated is not None:
                emulation = CudaEmulation(
                    emulated,
                    attention=attention,
                    softmax_keeps_input=softmax_keeps_input,
                    on_weight_copy=lambda tensor: tracker.mark([tensor], WEIGHT_COPIES),
                )
                own_code = Emulation(
                    KernelTarget("cuda", emulated.capability, attention),
                    compute_dtype=lambda: emulation.low,
                    autocast=emulation.autocast,
                    on_weight_copies=lambda copies: tracker.mark(copies, WEIGHT_COPIES),
                )
                tracker.on_exit = emulation.forget_copies  # a layer computed again has an autocast of its own
                self.autocast = self.autocast_of_backward = partial(emulation.autocast, dtype)
                stack.enter_context(emulate(own_code))
                stack.enter_context(emulation)
            elif dtype is not None:
                self.autocast = partial(torch.autocast, "cpu", dtype)
            stack.enter_context(tracker)
            if emulated is not None:
                self.workspaces = torch.empty(emulated.workspaces, dtype=torch.uint8)
                tracker.mark([self.workspaces], WORKSPACES)
            tracker.mark(self.module.parameters(), PARAMETERS)
            tracker.mark(self.module.buffers(), PARAMETERS)
            yield

    def run(self, *, replay: bool, limit: int | None) -> Trace:
        """The step after a first one, which is as long as the arguments of `trace` ask for."""
        self._first_step(self.micro_batches if self.after else self.micro_batches[:1] if replay else [])
        self._clear_gradients()
        start, resident = len(self.tracker.events), self.tracker.bytes
        self.tracker.limit = limit
        self.phases.clear()
        for number, batch in enumerate(self.micro_batches):
            self._micro_step(batch, number)
        self._enter("optimizer step")
        if self.max_norm is not None:
            nn.utils.clip_grad_norm_(self.module.parameters(), self.max_norm)
        self.update.step()
        self._clear_gradients()
        self._forget_weight_copies()
        return summarise(self.tracker, start, resident, self.phases)

    def _micro_step(self, batch: Any, number: int) -> None:
        """One micro-batch, forward and backward; it is on the device for as long as that takes."""
        inputs = _tensors([batch])
        self.tracker.mark(inputs, ACTIVATIONS)
        self._enter("forward")
        with self.autocast():
            output = self.module(**batch) if isinstance(batch, dict) else self.module(batch)
            value = self.loss(output, batch)
        self._enter("backward")
        with self.autocast_of_backward():
            (value / len(self.micro_batches)).backward()
        if self.after is not None:
            self.after(self.module, number)
        self.tracker.forget(inputs)

    def _first_step(self, micro_batches: list[Any]) -> None:
        """A step on some micro-batches, after which the optimizer's state exists."""
        for number, batch in enumerate(micro_batches):
            self._micro_step(batch, number)
        for parameter in self.module.parameters():
            if parameter.requires_grad and parameter.grad is None:  # another task's, or no micro-batch was asked for
                parameter.grad = torch.zeros_like(parameter)
                self.tracker.mark([parameter.grad], GRADIENTS)
        self.update.step()
        self._forget_weight_copies()
        is_paged = getattr(self.update, "is_paged", False) and self.tracker.granularity > 1
        for entries in self.update.state.values():
            state = [value for value in entries.values() if isinstance(value, Tensor)]
            self.tracker.mark(state, OPTIMIZER)
            if is_paged:  # pages of such a size leave for the host
                self.tracker.forget(value for value in state if value.numel() >= PAGED_FROM)

    def _forget_weight_copies(self) -> None:
        """A model that keeps copies of its weights from one micro-batch to the next makes them anew in each step."""
        if isinstance(self.module, KeepsWeightCopies):
            self.module.forget_weight_copies()

    def _enter(self, phase: str) -> None:
        self.phases.append((len(self.tracker.events), phase))

    def _clear_gradients(self) -> None:
        self.update.zero_grad(set_to_none=not self.keeps_gradients)


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


def _as_fake(model: nn.Module | Callable[[], nn.Module]) -> nn.Module:
    """The module with fake tensors of the same shapes. Fake tensors must be on already."""
    if not isinstance(model, nn.Module):
        return model()
    if any(isinstance(parameter, FakeTensor) for parameter in model.parameters()):
        raise ValueError("the model holds fake tensors of another mode: pass a function that builds it")
    copies: dict[int, Any] = {}
    for tensor in chain(model.parameters(), model.buffers()):
        copied = torch.empty(tensor.shape, dtype=tensor.dtype)
        if isinstance(tensor, nn.Parameter):
            copied = nn.Parameter(copied, requires_grad=tensor.requires_grad)
        copies[id(tensor)] = copied
    return copy.deepcopy(model, copies)


def _as_fake_batch(batch: Any) -> Any:
    """The batch with fake tensors, of which those that share memory share it still."""
    storages: dict[int, Tensor] = {}

    def fake(tensor: Tensor) -> Tensor:
        if isinstance(tensor, FakeTensor):
            return tensor
        storage = tensor.untyped_storage()
        if storage._cdata not in storages:
            storages[storage._cdata] = torch.empty(storage.nbytes(), dtype=torch.uint8)
        in_full = storage.nbytes() // tensor.itemsize * tensor.itemsize  # a batch has numbers of several widths
        whole = storages[storage._cdata][:in_full].view(tensor.dtype)
        return whole.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())

    return tree_map_only(Tensor, fake, batch)


def _tensors(values: Any) -> list[Tensor]:
    tensors: list[Tensor] = []
    tree_map_only(Tensor, tensors.append, values)
    return tensors


def _default_loss(output: Any, _batch: Any) -> Tensor:
    value = getattr(output, "loss", None)
    value = output[0] if value is None else value
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise ValueError("the model returns no loss: give the batch labels, or pass loss=...")
    return value


def _fused_adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5, fused=True)
