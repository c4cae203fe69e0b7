"""The search for the fastest plan that fits: closed form to rank, trace to certify."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

from pal_dist.data.batching import MICRO_BATCH_COST
from pal_dist.distributed.strategy import read_strategy
from pal_dist.distributed.task_gradients import PIECE
from pal_dist.memory.closed_form import Estimate, ModelShape, StepOptions, step_bytes
from pal_dist.memory.devices import Device
from pal_dist.memory.sharding import with_strategy
from pal_dist.memory.step_time import StepTime, micro_batch_cost, step_time
from pal_dist.memory.tracker import ACTIVATIONS, GRADIENTS

MARGIN = 0.05
"""One-sided: of 14 recorded runs 10 used more than predicted, the worst by 3.4 % (tests/unit/memory/test_recorded.py)."""

ROUNDING = 1.02
"""Reserved over allocated memory with expandable segments, in replays of steps with like shapes."""

OTHER_GRAPHS = "other tasks' graphs"

KEPT_APART = "tasks' gradients apart"

BRIM = 64
"""Length of the examples with which a budget is filled without a rest."""

STEP = 64
"""Token budgets are multiples of this."""


@dataclass(frozen=True)
class Machine:
    """The devices of a run: `gpus` of a kind on each of `nodes`."""

    device: Device
    gpus: int = 1
    nodes: int = 1

    @property
    def ranks(self) -> int:
        return self.gpus * self.nodes


@dataclass(frozen=True)
class Workload:
    """What a step has to get through, whatever the plan."""

    shape: ModelShape
    rows: int
    """Most examples of one task that one rank can meet in a step."""
    longest: int
    """Tokens of the longest example, rounded up as batches are."""
    mean_length: float
    tasks: int
    examples: int
    """Of all tasks and ranks, in one step."""
    graphs: int = 1
    """Task graphs alive at once: 1, or as many as tasks where a method (PCGrad as often written) keeps them all."""

    apart: bool = False
    """Each task's gradient of the shared parameters is kept until the step's end (--conflict)."""

    @property
    def most_tokens(self) -> int:
        """Tokens of the largest batch that could ever go through at once."""
        return self.rows * self.longest


@dataclass(frozen=True)
class Plan:
    """One way to run the work on the machine."""

    work: Workload
    machine: Machine
    options: StepOptions
    strategy: str
    tokens: int
    """Token budget of a micro-batch."""

    correction: float = 1.0
    """Measured or traced bytes over the closed form's."""

    @property
    def is_replicated(self) -> bool:
        """Every rank holds everything, so one rank's step is what a trace of one process says."""
        return self.strategy == "single" or read_strategy(self.strategy).kind == "replicated"

    @property
    def accumulates(self) -> bool:
        return self.work.tasks > 1 or self.tokens < self.work.most_tokens

    @cached_property
    def _worst(self) -> tuple[Estimate, tuple[int, int]]:
        work = self.work
        batches = [(min(work.rows, max(1, self.tokens // work.longest)), work.longest)]
        if work.longest > BRIM:  # shorter examples fill the budget to the brim where the longest leave a rest
            batches.append((max(1, min(work.rows, self.tokens // BRIM)), BRIM))
        found = [
            (step_bytes(work.shape, self.options, rows, length, accumulates=self.accumulates), (rows, length))
            for rows, length in batches
        ]
        return max(found, key=lambda entry: entry[0].peak)

    @property
    def worst_batch(self) -> tuple[int, int]:
        """(examples, length) of the largest micro-batch."""
        return self._worst[1]

    @cached_property
    def estimate(self) -> Estimate:
        """Bytes by category at the peak on one rank, by the closed form."""
        worst = self._worst[0]
        if self.work.graphs > 1:
            more = (self.work.graphs - 1) * (worst.categories[ACTIVATIONS] + worst.categories[GRADIENTS])
            worst = Estimate(worst.peak + more, {**worst.categories, OTHER_GRAPHS: more})
        machine = self.machine
        if self.work.apart:
            more = self._kept_apart()
            worst = Estimate(worst.peak + more, {**worst.categories, KEPT_APART: more})
        return with_strategy(worst, self.work.shape, self.options, self.strategy, machine.ranks, machine.device)

    def _kept_apart(self) -> int:
        """Bytes of all tasks' gradients but one, and of the pieces in which they are compared."""
        shared, ranks, tasks = self.work.shape.shared, self.machine.ranks, self.work.tasks
        sharded = not self.is_replicated and read_strategy(self.strategy).kind == "fsdp2"
        piece = min(shared, PIECE)
        gradient = shared // ranks if sharded else shared
        pieces = piece * (1 + tasks) + (tasks * piece // ranks if ranks > 1 else 0)
        return 4 * ((tasks - 1) * gradient + pieces)

    @property
    def needed(self) -> int:
        """Bytes of the device that this plan asks for, the margin included, the context not."""
        return int(self.estimate.peak * self.correction * ROUNDING * (1 + MARGIN))

    @property
    def fits(self) -> bool:
        return self.needed <= self.machine.device.usable

    @property
    def micro_batch_cost(self) -> int:
        """Fixed cost of one more micro-batch, in tokens: measured on a CPU, estimated for GPUs."""
        device = self.machine.device
        return MICRO_BATCH_COST if device.is_cpu else micro_batch_cost(self.work.shape, self.options, device)

    @property
    def rank_examples(self) -> float:
        """Examples of one rank in a step; each has one of every task at least, a filler where there are too few."""
        return max(self.work.examples / self.machine.ranks, self.work.tasks)

    @cached_property
    def time(self) -> StepTime:
        """Estimated time of a step."""
        work, machine = self.work, self.machine
        tokens = self.rank_examples * work.mean_length
        micro_batches = work.tasks * max(1.0, tokens / work.tasks / self.tokens)
        return step_time(
            work.shape, self.options, machine.device, strategy=self.strategy, gpus=machine.gpus, nodes=machine.nodes,
            tokens=tokens, length=work.mean_length, micro_batches=micro_batches,
        )  # fmt: skip

    @property
    def seconds(self) -> float:
        return self.time.total

    @property
    def examples_per_second(self) -> float:
        return self.work.examples / self.seconds


@dataclass(frozen=True)
class SearchSpace:
    """The values each lever may take; one value fixes it."""

    precision: Sequence[str]
    attention: Sequence[str] = ("sdpa",)
    checkpoint_layers: Sequence[int] = (0, 4, 3, 2, 1)
    optimizer: Sequence[str] = ("adamw", "adamw_8bit", "paged_adamw_8bit")
    strategy: Sequence[str] = ("single",)
    tokens: int | None = None
    """A fixed token budget; None: as large as fits."""


def candidates(work: Workload, machine: Machine, choices: SearchSpace) -> Iterator[Plan]:
    """Every combination of options, each with the largest token budget that fits, or the least one where none does."""
    for precision, attention, layers, optimizer, strategy in product(
        choices.precision, choices.attention, choices.checkpoint_layers, choices.optimizer, choices.strategy
    ):
        if strategy.startswith("zero") and optimizer != "adamw":
            continue  # 8-bit state under ZeRO is experimental, under offload silently another optimizer
        if layers > work.shape.layers:
            continue
        plan = Plan(work, machine, StepOptions(precision, attention, layers, optimizer), strategy, work.longest)
        yield replace(plan, tokens=choices.tokens) if choices.tokens else largest_that_fits(plan)


def largest_that_fits(plan: Plan) -> Plan:
    """The same plan with the largest token budget that fits; the least one where none does."""
    least, most = plan.work.longest, max(plan.work.most_tokens, plan.work.longest)
    if replace(plan, tokens=most).fits:
        return replace(plan, tokens=most)
    low, high = 0, (most - least) // STEP
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if replace(plan, tokens=least + middle * STEP).fits else (low, middle - 1)
    return replace(plan, tokens=least + low * STEP)


def fastest(plans: Sequence[Plan]) -> Plan | None:
    """The fastest that fits; among equals (within 1 %) the one that needs least."""
    fitting = [plan for plan in plans if plan.fits]
    if not fitting:
        return None
    best = min(plan.seconds for plan in fitting)
    return min((plan for plan in fitting if plan.seconds <= 1.01 * best), key=_simplicity)


def _simplicity(plan: Plan) -> tuple[int, int, int]:
    options = plan.options
    return (options.optimizer != "adamw", options.checkpoint_layers, plan.needed)


def nearest_that_does_not_fit(plans: Sequence[Plan], chosen: Plan) -> Plan | None:
    """The plan that misses by least among those that would be faster than the chosen one."""
    larger = replace(chosen, tokens=chosen.tokens + STEP) if chosen.tokens < chosen.work.most_tokens else None
    missing = [plan for plan in [*plans, *([larger] if larger else [])] if not plan.fits]
    faster = [plan for plan in missing if plan.seconds <= chosen.seconds] or missing
    return min(faster, key=lambda plan: plan.needed, default=None)


def alternatives(plan: Plan) -> list[tuple[str, Plan]]:
    """The plan with one lever pulled, each that it has not pulled yet."""
    options, device = plan.options, plan.machine.device
    single = "ddp" if plan.machine.ranks > 1 else "single"
    found: list[tuple[str, Plan]] = []

    def offer(name: str, other: Plan) -> None:
        if other != plan:
            found.append((name, other))

    offer("half the tokens per micro-batch", replace(plan, tokens=max(plan.work.longest, plan.tokens // 2)))
    if options.attention == "eager":
        offer("fused attention (sdpa)", replace(plan, options=replace(options, attention="sdpa")))
    if options.precision == "fp32" and device.low_precision != "fp32":
        offer(
            f"precision {device.low_precision}", replace(plan, options=replace(options, precision=device.low_precision))
        )
    for every in (2, 1):
        if options.checkpoint_layers != 1 and every <= plan.work.shape.layers:
            name = "every layer" if every == 1 else "every 2nd layer"
            offer(f"checkpointing {name}", replace(plan, options=replace(options, checkpoint_layers=every)))
    for optimizer in ("adamw_8bit", "paged_adamw_8bit"):
        if options.optimizer == "adamw" and plan.strategy == single:
            offer(f"optimizer {optimizer}", replace(plan, options=replace(options, optimizer=optimizer)))
    if plan.work.graphs > 1:
        offer("one task's graph at a time", replace(plan, work=replace(plan.work, graphs=1)))
    if plan.work.apart:
        offer("gradients summed (--conflict none)", replace(plan, work=replace(plan.work, apart=False)))
    for strategy in ("zero1", "zero2", "zero3", "zero2_offload", "zero3_offload"):
        if plan.strategy == single and options.optimizer == "adamw":
            offer(strategy, replace(plan, strategy=strategy))
    return found
