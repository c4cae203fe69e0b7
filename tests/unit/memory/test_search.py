"""The search: more memory is never slower, the largest budget that fits is found, alternatives are other plans."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pal_dist.config.resolve import resolve
from pal_dist.core.units import GIBIBYTE
from pal_dist.memory.closed_form import StepOptions
from pal_dist.memory.devices import cpu_device, find_device
from pal_dist.memory.planner import as_flags
from pal_dist.memory.search import (
    Machine,
    Plan,
    SearchSpace,
    Workload,
    alternatives,
    candidates,
    fastest,
    full_search_space,
    largest_that_fits,
)
from tests.support.random_runs import random_run, shape


@pytest.fixture(scope="module")
def work() -> Workload:
    return Workload(shape(random_run(2).config), (64, 64, 64), 128, 60.0, 192, 3, 3 * 64 * 128)


def test_more_memory_is_never_slower(work: Workload) -> None:
    speeds = []
    for name in ("t4", "a100-40", "a100-80"):
        machine = Machine(replace(find_device("t4"), memory=find_device(name).memory))
        plan = fastest(list(candidates(work, machine, full_search_space(machine))))
        assert plan is not None
        speeds.append(plan.seconds)
    assert speeds == sorted(speeds, reverse=True)


def test_the_largest_budget_that_fits(work: Workload) -> None:
    card = replace(find_device("t4"), memory=find_device("t4").context + GIBIBYTE // 8)
    plan = largest_that_fits(Plan(work, Machine(card), StepOptions(), "single", 128))
    assert plan.fits
    assert plan.tokens < plan.work.most_tokens
    assert not replace(plan, tokens=plan.tokens + 128).fits


def test_8_bit_state_is_for_memory_alone(work: Workload) -> None:
    choices = SearchSpace(("fp16",), checkpoint_layers=(0,), tokens=4096)
    machine = Machine(find_device("t4"))
    work = replace(work, run=resolve({"cuda_graphs": "off"})[0])
    roomy = list(candidates(work, machine, choices))
    adamw, eight_bit = (
        next(plan for plan in roomy if plan.options.optimizer == name) for name in ("adamw", "adamw_8bit")
    )
    assert eight_bit.seconds <= adamw.seconds
    assert fastest(roomy) == adamw
    between = replace(machine.device, memory=0, taken=0)
    between = replace(between, memory=(adamw.needed + eight_bit.needed) // 2)
    best = fastest(list(candidates(work, Machine(between), choices)))
    assert best is not None
    assert best.options.optimizer != "adamw"


def test_every_alternative_is_another_plan(work: Workload) -> None:
    base = Plan(work, Machine(find_device("t4"), gpus=2), StepOptions("fp32", "eager"), "ddp", 8192)
    changed = alternatives(base)
    assert len({as_flags(other) + other.strategy + other.options.attention for _, other in changed}) == len(changed)
    assert {"checkpointing every layer", "precision fp16", "optimizer adamw_8bit", "zero3"} <= dict(changed).keys()


def test_zero_and_8_bit_are_never_planned_together(work: Workload) -> None:
    choices = SearchSpace(("fp16",), strategy=("zero1", "zero2_offload", "fsdp2"))
    plans = candidates(work, Machine(find_device("t4")), choices)
    assert {plan.options.optimizer for plan in plans} == {"adamw"}


def test_a_processor_has_nowhere_to_lend_memory_from(work: Workload) -> None:
    machine = Machine(cpu_device(GIBIBYTE))
    everything = full_search_space(machine)
    assert everything.optimizer == ("adamw", "adamw_8bit")
    assert everything.strategy == ("single",)
    plan = Plan(work, machine, StepOptions(), "single", 8192)
    assert not {"optimizer paged_adamw_8bit", "zero2_offload"} & dict(alternatives(plan)).keys()
    paged, eight_bit = (
        replace(plan, options=StepOptions(optimizer=name)) for name in ("paged_adamw_8bit", "adamw_8bit")
    )
    assert paged.needed == eight_bit.needed < plan.needed


def test_more_checkpoints_than_layers_are_looked_at_where_they_were_asked_for(work: Workload) -> None:
    machine = Machine(find_device("t4"))
    free = candidates(work, machine, SearchSpace(("fp16",)))
    assert max(plan.options.checkpoint_layers for plan in free) <= work.shape.layers
    asked = candidates(work, machine, SearchSpace(("fp16",), checkpoint_layers=(99,)))
    assert {plan.options.checkpoint_layers for plan in asked} == {99}


def test_graphs_where_the_host_is_slower_than_the_device(work: Workload) -> None:
    """They are planned where time is to be won and room is, their pool is counted, and nothing else is changed."""
    machine = Machine(replace(find_device("h100"), launch=50e-6))
    choices = SearchSpace(("bf16",), checkpoint_layers=(0,), optimizer=("adamw",))
    plain, graphs = candidates(work, machine, choices)
    assert (plain.options.graphs, graphs.options.graphs) == (False, True)
    assert fastest([plain, graphs]) == graphs
    assert graphs.estimate.categories["CUDA graphs"] == graphs.graph_bytes > 0
    assert graphs.accumulates, "gradients stay in their places"
    assert graphs.time.launching < plain.time.launching / 5
    crowded = replace(machine.device, memory=0, taken=0)
    crowded = replace(crowded, memory=(plain.needed + graphs.needed) // 2)
    smaller = fastest(list(candidates(work, Machine(crowded), choices)))
    assert smaller is not None
    assert not smaller.options.graphs or smaller.tokens < graphs.tokens


@pytest.mark.parametrize(
    ("settings", "layers"),
    [
        ({"cuda_graphs": "off"}, 0),
        ({"step_tasks": "one"}, 0),
        ({"conflict": "pcgrad"}, 0),
        ({}, 1),
    ],
)
def test_no_graphs_where_they_cannot_be_right(work: Workload, settings: dict[str, str], layers: int) -> None:
    run = resolve(settings)[0]
    choices = SearchSpace(("bf16",), checkpoint_layers=(layers,), optimizer=("adamw",))
    plans = list(candidates(replace(work, run=run), Machine(find_device("h100")), choices))
    assert not any(plan.options.graphs for plan in plans)
