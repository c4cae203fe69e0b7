"""The search for the fastest plan that fits: closed form to rank, trace to certify."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product

from pal_dist.config.schema import RunConfig
from pal_dist.core.units import ceil_div
from pal_dist.data.fixed_sizes import MOST_TOKENS
from pal_dist.distributed.compatibility import incompatibilities, why_no_graphs
from pal_dist.distributed.strategy import REPLICATED
from pal_dist.distributed.task_gradients import PIECE_ELEMENTS
from pal_dist.memory.closed_form import Estimate, ModelShape, PackedSize, StepOptions, step_bytes
from pal_dist.memory.devices import Device
from pal_dist.memory.sharding import planned_strategy, with_strategy
from pal_dist.memory.step_time import StepTime, step_time
from pal_dist.memory.tracker import ACTIVATIONS, GRADIENTS, TEMPORARIES, WEIGHT_COPIES, WORKSPACES

MARGIN = 0.05
"""One-sided: of 14 recorded runs 10 used more than predicted, the worst by 3.4 % (tests/ranks/test_recorded.py)."""

ROUNDING = 1.02
"""Reserved over allocated memory with expandable segments, in replays of steps with like shapes."""

OTHER_GRAPHS = "other tasks' graphs"

CUDA_GRAPHS = "CUDA graphs"

SEPARATE_GRADIENTS = "tasks' gradients apart"

FILLING_LENGTH = 64
"""Length of the examples with which a token budget is taken to be filled without a rest."""

BUDGET_STEP = 64
"""Token budgets are looked at in steps of this."""

SHARDED, OFFLOADED = ("zero1", "zero2", "zero3"), ("zero2_offload", "zero3_offload")
"""Strategies that are proposed unasked: where there are ranks to share with, and where a host can lend memory."""


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
    rows: tuple[int, ...]
    """Most examples of each task that one rank can meet in a step."""
    longest: int
    """Tokens of the longest example."""
    mean_length: float
    examples: int
    """Of all tasks and ranks, in one step."""
    tasks_in_step: int
    """Tasks that one step serves."""
    most_tokens: int
    """Tokens of the largest micro-batch that could ever go through at once."""
    task_graphs: int = 1
    """Task graphs alive at once: 1, or as many as tasks where a method (PCGrad as often written) keeps them all."""

    separate_gradients: bool = False
    """Each task's gradient of the shared parameters is kept until the step's end (--conflict)."""

    least_tokens: int = 0
    """The least that a token budget may be: the longest example's tokens, or more where it is named as a flag."""

    run: RunConfig = field(default_factory=RunConfig)
    """The settings of the run, which rule out some options (distributed/compatibility.py)."""

    @property
    def one_task(self) -> bool:
        """A micro-batch holds rows of one task: steps serve one, or gradients are kept apart."""
        return self.tasks_in_step == 1 or self.separate_gradients

    @property
    def tasks_at_once(self) -> int:
        """Tasks whose rows a micro-batch can hold."""
        return 1 if self.one_task else self.tasks_in_step

    @property
    def most_rows(self) -> int:
        """Examples of the largest micro-batch that could ever go through at once."""
        return max(self.rows) if self.one_task else sum(self.rows)

    @property
    def smallest_budget(self) -> int:
        """Tokens: no micro-batch can be limited to less."""
        return max(self.longest, self.least_tokens)


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
        return planned_strategy(self.strategy).kind == "replicated"

    @property
    def is_accepted(self) -> bool:
        """Whether `train` takes this optimizer and this strategy together with the run's other settings."""
        run = self.work.run
        run = replace(run, optimizer=replace(run.optimizer, optimizer=self.options.optimizer))  # type: ignore[arg-type]
        return not incompatibilities(run, planned_strategy(self.strategy))

    @property
    def can_replay(self) -> bool:
        """Whether `train` can replay micro-batches as CUDA graphs."""
        run, options = self.work.run, self.options
        suits = options.checkpoint_layers == 0 and options.attention != "eager" and not self.machine.device.is_cpu
        allowed = run.train.cuda_graphs == "auto" and not why_no_graphs(run, planned_strategy(self.strategy))
        return suits and allowed

    @property
    def _counted_options(self) -> StepOptions:
        """The options as they weigh here: on a CPU, state that is paged out stays in the same memory."""
        options = self.options.on(self.machine.device)
        if not self.machine.device.is_cpu:
            return options
        return replace(options, optimizer=options.optimizer.removeprefix("paged_"))

    @property
    def accumulates(self) -> bool:
        """A step can have several micro-batches, so that gradients are there while the largest is computed."""
        several = self.tokens < self.work.most_tokens or (self.work.one_task and self.work.tasks_in_step > 1)
        return several or self.options.graphs  # which find gradients where they were recorded

    @cached_property
    def _largest_micro_batch(self) -> tuple[Estimate, PackedSize]:
        """The micro-batch that needs most: the step's bytes on a single rank, and its size."""
        work, options = self.work, self._counted_options
        tokens = max(work.longest, min(self.tokens, work.most_tokens))
        lengths = [work.longest]
        if work.longest > FILLING_LENGTH:  # the same tokens in more rows
            lengths.append(FILLING_LENGTH)
        sizes = [
            PackedSize(min(tokens, rows * length + length - 1), rows, length, min(rows, work.tasks_at_once))
            for length in lengths
            for rows in [max(1, min(work.most_rows, tokens // length))]
        ]
        return max(
            ((step_bytes(work.shape, options, size, accumulates=self.accumulates), size) for size in sizes),
            key=lambda entry: entry[0].peak,
        )

    @property
    def worst_batch(self) -> PackedSize:
        """Size of the largest micro-batch."""
        return self._largest_micro_batch[1]

    @cached_property
    def estimate(self) -> Estimate:
        """Bytes by category at the peak on one rank, by the closed form."""
        estimate, work, machine = self._largest_micro_batch[0], self.work, self.machine
        more: dict[str, int] = {}
        if work.task_graphs > 1:
            one_graph = estimate.categories[ACTIVATIONS] + estimate.categories[GRADIENTS]
            more[OTHER_GRAPHS] = (work.task_graphs - 1) * one_graph
        if self.options.graphs:
            more[CUDA_GRAPHS] = self.graph_bytes
        if work.separate_gradients:
            more[SEPARATE_GRADIENTS] = self._separate_gradients_bytes()
        alone = Estimate(estimate.peak + sum(more.values()), {**estimate.categories, **more})
        return with_strategy(alone, work.shape, self._counted_options, self.strategy, machine.ranks, machine.device)

    @cached_property
    def graph_bytes(self) -> int:
        """Bytes of the pool in which all graphs compute, one at a time: what the largest micro-batch that is recorded
        takes beside parameters, gradients and optimizer state. Kernels that are started one by one take theirs
        elsewhere."""
        if not self.options.graphs:
            return 0
        tokens = max(self.work.longest, min(self.tokens, self.work.most_tokens, MOST_TOKENS))
        length = min(FILLING_LENGTH, self.work.longest)
        rows = ceil_div(tokens, length)
        size = PackedSize(rows * length, rows, length, min(rows, self.work.tasks_at_once))
        categories = step_bytes(self.work.shape, self._counted_options, size).categories
        return sum(categories[kind] for kind in (ACTIVATIONS, WEIGHT_COPIES, TEMPORARIES, WORKSPACES))

    def _separate_gradients_bytes(self) -> int:
        """Bytes of all tasks' gradients but one, and of the pieces in which they are compared."""
        shared, ranks, tasks = self.work.shape.shared, self.machine.ranks, self.work.tasks_in_step
        is_sharded = planned_strategy(self.strategy).kind == "fsdp2"
        piece = min(shared, PIECE_ELEMENTS)
        gradient = shared // ranks if is_sharded else shared
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
    def rank_examples(self) -> float:
        """Examples of one rank in a step."""
        return self.work.examples / self.machine.ranks

    @property
    def micro_batches(self) -> float:
        """About how many one rank runs in a step."""
        passes = self.work.tasks_in_step if self.work.one_task else 1
        return passes * max(1.0, self.rank_examples * self.work.mean_length / passes / self.tokens)

    @cached_property
    def time(self) -> StepTime:
        """Estimated time of a step."""
        work, machine = self.work, self.machine
        return step_time(
            work.shape,
            self._counted_options,
            machine.device,
            strategy=self.strategy,
            gpus=machine.gpus,
            nodes=machine.nodes,
            tokens=self.rank_examples * work.mean_length,
            length=work.mean_length,
            micro_batches=self.micro_batches,
            tasks=work.tasks_at_once,
        )

    @property
    def seconds(self) -> float:
        return self.time.total

    @property
    def examples_per_second(self) -> float:
        return self.work.examples / self.seconds


@dataclass(frozen=True)
class SearchSpace:
    """The values that each option may take; one value fixes it."""

    precision: Sequence[str]
    attention: Sequence[str] = ("sdpa",)
    checkpoint_layers: Sequence[int] = (0, 4, 3, 2, 1)
    optimizer: Sequence[str] = REPLICATED.optimizers
    strategy: Sequence[str] = ("single",)
    tokens: int | None = None
    """A fixed token budget; None: as large as fits."""


def full_search_space(machine: Machine) -> SearchSpace:
    """Every option free that can help on this machine."""
    low = machine.device.low_precision
    return SearchSpace(
        precision=(low, "fp32") if low != "fp32" else ("fp32",),
        optimizer=tuple(name for name in REPLICATED.optimizers if _saves_memory(name, machine.device)),
        strategy=(
            "ddp" if machine.ranks > 1 else "single",
            *(SHARDED if machine.ranks > 1 else ()),
            *(OFFLOADED if not machine.device.is_cpu else ()),
        ),
    )


def _saves_memory(optimizer: str, device: Device) -> bool:
    """Not where paged state leaves a processor's memory for that same memory."""
    return not (device.is_cpu and optimizer.startswith("paged"))


def candidates(work: Workload, machine: Machine, choices: SearchSpace) -> Iterator[Plan]:
    """Every combination of options that `train` accepts, each with the largest token budget that fits, or the least one
    where none does."""
    depth = work.shape.layers
    # More than all layers is the first layer alone, as every `depth`-th is: worth a look only where it was asked for.
    layer_choices = [every for every in choices.checkpoint_layers if every <= depth] or choices.checkpoint_layers
    for precision, attention, layers, optimizer, strategy in product(
        choices.precision, choices.attention, layer_choices, choices.optimizer, choices.strategy
    ):
        options = StepOptions(precision, attention, layers, optimizer)
        plan = Plan(work, machine, options, strategy, choices.tokens or work.smallest_budget)
        if not plan.is_accepted:
            continue
        for graphs in (False, True) if plan.can_replay else (False,):
            one = replace(plan, options=replace(options, graphs=graphs))
            yield one if choices.tokens else largest_that_fits(one)


def largest_that_fits(plan: Plan) -> Plan:
    """The same plan with the largest token budget that fits; the least one where none does."""
    least = plan.work.smallest_budget
    most = max(plan.work.most_tokens, least)
    if replace(plan, tokens=most).fits:
        return replace(plan, tokens=most)
    low, high = 0, (most - least) // BUDGET_STEP
    while low < high:
        middle = (low + high + 1) // 2
        fits = replace(plan, tokens=least + middle * BUDGET_STEP).fits
        low, high = (middle, high) if fits else (low, middle - 1)
    return replace(plan, tokens=least + low * BUDGET_STEP)


def fastest(plans: Sequence[Plan]) -> Plan | None:
    """The fastest that fits; among equals (within 1 %) the one that needs least. State in 8 bits is another optimizer:
    it is taken for memory alone, never because its update is estimated to be faster."""
    fitting = [plan for plan in plans if plan.fits and _needs_its_optimizer(plan)]
    if not fitting:
        return None
    best = min(plan.seconds for plan in fitting)
    return min((plan for plan in fitting if plan.seconds <= 1.01 * best), key=_simplicity)


def _needs_its_optimizer(plan: Plan) -> bool:
    """AdamW with whole state would not fit in its place, or it is that, or nothing else was to be looked at."""
    with_adamw = replace(plan, options=replace(plan.options, optimizer="adamw"))
    asked = plan.work.run.optimizer.optimizer
    return plan.options.optimizer in ("adamw", asked) or not with_adamw.fits


def _simplicity(plan: Plan) -> tuple[int, int, int, int]:
    options = plan.options
    return (options.optimizer != "adamw", options.checkpoint_layers, options.graphs, plan.needed)


def nearest_that_does_not_fit(plans: Sequence[Plan], chosen: Plan) -> Plan | None:
    """The plan that misses by least among those that would be faster than the chosen one."""
    larger = replace(chosen, tokens=chosen.tokens + BUDGET_STEP) if chosen.tokens < chosen.work.most_tokens else None
    missing = [plan for plan in [*plans, *([larger] if larger else [])] if not plan.fits]
    faster = [plan for plan in missing if plan.seconds <= chosen.seconds] or missing
    return min(faster, key=lambda plan: plan.needed, default=None)


def alternatives(plan: Plan) -> list[tuple[str, Plan]]:
    """The plan with one option changed, each way that saves memory and that `train` accepts: (name, plan)."""
    changed = [*_smaller_steps(plan), *_other_layouts(plan), *_other_strategies(plan)]
    possible = [(name, _without_impossible_graphs(other)) for name, other in changed]
    return [(name, other) for name, other in possible if other != plan and other.is_accepted]


def _without_impossible_graphs(plan: Plan) -> Plan:
    """What was changed may leave no way to replay micro-batches."""
    graphs = plan.options.graphs and plan.can_replay
    return replace(plan, options=replace(plan.options, graphs=graphs))


def _smaller_steps(plan: Plan) -> Iterator[tuple[str, Plan]]:
    """Less that is alive in forward and backward."""
    options, device = plan.options, plan.machine.device
    yield (
        "half the tokens per micro-batch",
        replace(plan, tokens=max(plan.work.smallest_budget, plan.tokens // 2)),
    )
    if options.attention == "eager":
        yield "fused attention (sdpa)", replace(plan, options=replace(options, attention="sdpa"))
    if options.precision == "fp32" and device.low_precision != "fp32":
        lower = replace(options, precision=device.low_precision)
        yield f"precision {device.low_precision}", replace(plan, options=lower)
    for every, name in ((2, "every 2nd layer"), (1, "every layer")):
        if options.checkpoint_layers != 1 and every <= plan.work.shape.layers:
            yield f"checkpointing {name}", replace(plan, options=replace(options, checkpoint_layers=every))


def _other_layouts(plan: Plan) -> Iterator[tuple[str, Plan]]:
    """Less optimizer state, or fewer graphs and gradients of tasks at once."""
    options, device, work = plan.options, plan.machine.device, plan.work
    for optimizer in planned_strategy(plan.strategy).optimizers:
        if options.optimizer == "adamw" and _saves_memory(optimizer, device):
            yield f"optimizer {optimizer}", replace(plan, options=replace(options, optimizer=optimizer))
    if work.task_graphs > 1:
        yield "one task's graph at a time", replace(plan, work=replace(work, task_graphs=1))
    if work.separate_gradients:
        yield "gradients summed (--conflict none)", replace(plan, work=replace(work, separate_gradients=False))


def _other_strategies(plan: Plan) -> Iterator[tuple[str, Plan]]:
    if plan.is_replicated:
        for strategy in (*SHARDED, *(OFFLOADED if not plan.machine.device.is_cpu else ())):
            yield strategy, replace(plan, strategy=strategy)
