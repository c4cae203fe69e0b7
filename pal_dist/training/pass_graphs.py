"""Micro-batches of few sizes, each recorded once as a CUDA graph and replayed from then on: one launch for hundreds.

A size is recorded when it comes the second time. Its graph is used only after it has given the losses and gradients of
the same micro-batch computed kernel by kernel; one that fails, or gives others, is never asked again and said once.
Dropout's masks are the same either way: a replay draws from the generator as the kernels would.

(torchtitan pull request 3559 keeps one graph of forward, loss and backward; rf-detr 1468 a graph for each signature.)
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Parameter

from pal_dist.core.console import say
from pal_dist.data.batch import Batch
from pal_dist.training.gradient_places import GradientPlaces
from pal_dist.training.graph_recorder import CudaGraphRecorder, PlainRecorder, Recorder, Work
from pal_dist.training.micro_batch_pass import MicroBatchPass
from pal_dist.training.run import Run

MOST_GRAPHS = 32
"""Kept at once; the least recently used makes room. Each keeps its kernels' arguments, some megabytes."""

REMEMBERED = 256
"""Sizes that are remembered to have come once."""

GIVES_UP_AFTER = 3
"""Recordings that failed where none succeeded."""

TOLERANCE = 1e-2
"""Relative, of gradient norms: some kernels add in any order, in 16 bits."""


@dataclass
class RecordedPass:
    """A pass over fixed buffers."""

    batch: Batch
    """In the buffer to which each micro-batch is copied."""
    losses_S: Tensor
    """What it writes its losses to."""
    parameters: list[Parameter]
    """Those that get a gradient."""
    replay: Work

    def __call__(self, on_host: Batch, places: GradientPlaces) -> Tensor:
        places.use(self.parameters)
        self.fill(on_host)
        self.replay(self.batch)
        return self.losses_S.clone()

    def fill(self, on_host: Batch) -> None:
        """Copy a micro-batch of this size into the buffer."""
        assert self.batch.buffer is not None, "a batch is moved by its buffer"
        assert on_host.buffer is not None, "a batch is moved by its buffer"
        self.batch.buffer.copy_(on_host.buffer, non_blocking=True)
        self.batch = self.batch._replace(segments=on_host.segments, lengths=on_host.lengths)


class PassGraphs:
    """Runs micro-batches, by a graph where there is one for their size."""

    def __init__(self, run: Run, run_pass: MicroBatchPass, recorder: Recorder, on_failure: Callable[[str], None]):
        """`on_failure` is told what could not be recorded, and why."""
        self.run, self.run_pass, self.recorder, self.on_failure = run, run_pass, recorder, on_failure
        self.places = GradientPlaces()
        self.recorded: OrderedDict[Hashable, RecordedPass] = OrderedDict()
        self.came_once: OrderedDict[Hashable, None] = OrderedDict()
        self.failed: set[Hashable] = set()
        self.limits, self.gave_up = self._limits, False
        self.replays = self.passes = self.recordings = 0
        """Micro-batches by a graph, and in all; sizes that were recorded."""

    def __call__(self, on_host: Batch) -> Tensor:
        """The summed loss of each segment, (S,); the gradients are added to this rank's."""
        if self.limits != self._limits:  # the guard has tightened them: room first, and from now on
            self.give_up()
        self.passes += 1
        signature = self._signature(on_host)
        if signature is None or signature in self.failed:
            return self._kernel_by_kernel(on_host)
        if (known := self.recorded.get(signature)) is not None:
            self.recorded.move_to_end(signature)
            self.replays += 1
            return known(on_host, self.places)
        if signature not in self.came_once:
            self.came_once[signature] = None
            if len(self.came_once) > REMEMBERED:
                self.came_once.popitem(last=False)
            return self._kernel_by_kernel(on_host)
        return self._recorded_now(signature, on_host)

    def give_up(self) -> None:
        """Forget all graphs, give their memory back, record no others: there was less room than was planned."""
        self.gave_up, self.limits = True, self._limits
        self.recorded.clear()
        self.run.engine.empty_cache()

    def summary(self) -> str:
        """What they did, for the person."""
        return f"graphs: {self.recordings:,} sizes recorded; {self.replays:,} of {self.passes:,} micro-batches replayed"

    @property
    def _limits(self) -> tuple[int, int]:
        return self.run.state.tokens_per_micro_batch, self.run.state.checkpoint_layers

    def _signature(self, on_host: Batch) -> Hashable | None:
        """What decides a pass's kernels; None where nothing is to be recorded."""
        never_worked = len(self.failed) >= GIVES_UP_AFTER and not self.recordings
        if on_host.size is None or never_worked or self.gave_up:
            return None
        return tuple(segment.task for segment in on_host.segments), on_host.size, self.run.model.stage

    def _kernel_by_kernel(self, on_host: Batch) -> Tensor:
        return self.run_pass(self.run.engine.to_device(on_host))

    def _recorded_now(self, signature: Hashable, on_host: Batch) -> Tensor:
        """Record this size and run the micro-batch, which is the first to be replayed where all is well."""
        engine, trained = self.run.engine, self._trained
        # Of the step's earlier micro-batches; in memory of their own, for their places are written to.
        before = [(parameter, parameter.grad.clone()) for parameter in trained if parameter.grad is not None]
        _clear(trained)
        start = engine.random_state
        expected = self._kernel_by_kernel(on_host)
        parameters = [parameter for parameter in trained if parameter.grad is not None]
        norms = _norms(parameters)
        if not bool(norms.isfinite().all()):  # fp16's scale is still being found: nothing to compare with
            losses_S = expected
        else:
            _clear(parameters)
            try:
                known = self._record(on_host, parameters)
                _clear(parameters)  # a recorder may have computed
                engine.random_state = start
                losses_S = known(on_host, self.places)
                _check_same(losses_S, expected, _norms(parameters), norms)
                self._keep(signature, known)
            except Exception as error:  # whatever a driver, a library or a kernel has against being recorded
                self._note_failure(signature, on_host, error)
                _clear(trained)
                self.run.model.forget_weight_copies()
                engine.random_state = start
                losses_S = self._kernel_by_kernel(on_host)
        for parameter, gradient in before:
            parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
        return losses_S

    def _record(self, on_host: Batch, parameters: list[Parameter]) -> RecordedPass:
        engine, model = self.run.engine, self.run.model
        batch = engine.to_device(on_host)
        assert batch.buffer is not None, "a batch is moved by its buffer"
        if batch.buffer is on_host.buffer:
            batch = batch.copied()
        losses_S = torch.empty(len(batch.segments), dtype=batch_dtype(model), device=engine.device)

        def work(own: Batch) -> None:
            losses_S.copy_(self.run_pass(own))

        self.places.use(parameters)
        model.forget_weight_copies()  # a graph makes its own: those of now are another step's by then
        try:
            replay = self.recorder.record(work, batch)
        finally:
            model.forget_weight_copies()
        return RecordedPass(batch, losses_S, parameters, replay)

    def _keep(self, signature: Hashable, known: RecordedPass) -> None:
        self.recordings += 1
        self.replays += 1
        del self.came_once[signature]
        self.recorded[signature] = known
        if len(self.recorded) > MOST_GRAPHS:
            self.recorded.popitem(last=False)

    def _note_failure(self, signature: Hashable, on_host: Batch, error: Exception) -> None:
        self.failed.add(signature)
        reason = str(error).split("\n")[0] or type(error).__name__
        self.on_failure(
            f"micro-batches of {on_host.tokens:,} tokens could not be recorded as a CUDA graph ({reason}); they run "
            f"kernel by kernel"
        )

    @property
    def _trained(self) -> list[Parameter]:
        return [parameter for parameter in self.run.model.parameters() if parameter.requires_grad]


def pass_graphs(run: Run, run_pass: MicroBatchPass) -> PassGraphs | None:
    """What runs the micro-batches of a run whose sizes are fixed; None: they are not."""
    if not run.fixes_sizes:
        return None
    on_gpu = run.engine.device.type == "cuda" and run.config.train.cuda_graphs == "auto"
    recorder: Recorder = CudaGraphRecorder() if on_gpu else PlainRecorder()
    return PassGraphs(run, run_pass, recorder, lambda words: say(f"note: {words}") if run.engine.is_main else None)


def batch_dtype(model: torch.nn.Module) -> torch.dtype:
    """Of losses: float32, or wider where the model is."""
    return torch.promote_types(next(model.parameters()).dtype, torch.float32)


def _clear(parameters: Sequence[Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None


def _norms(parameters: Sequence[Parameter]) -> Tensor:
    """(parameters,), of their gradients."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return torch.stack(torch._foreach_norm(gradients))


def _check_same(losses_S: Tensor, expected: Tensor, norms: Tensor, expected_norms: Tensor) -> None:
    """Raises RuntimeError where a replay gives other numbers than the kernels one by one."""
    floor = float(expected_norms.norm()) * TOLERANCE / 10
    if not torch.allclose(losses_S, expected, rtol=TOLERANCE / 10, atol=1e-5) or not torch.allclose(
        norms, expected_norms, rtol=TOLERANCE, atol=floor
    ):
        raise RuntimeError("its losses or gradients are not those of the kernels one by one")
