"""A plan's report in words for a person, and as JSON for programs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from pal_dist.commands.plan import PlanReport
from pal_dist.core.atomic_io import to_json
from pal_dist.core.console import table
from pal_dist.core.units import GIBIBYTE, gib
from pal_dist.memory.planner import PlannedRun, as_flags, as_record, speed_source, speed_text
from pal_dist.memory.scaling import CHECKPOINT_STEPS, STORAGE, ScalingPoint, strong, weak
from pal_dist.memory.search import Plan, alternatives, nearest_that_does_not_fit


def plan_json(report: PlanReport) -> str:
    """One line of JSON: bytes exact, times in seconds."""
    plan = report.planned.plan
    record: dict[str, Any] = {
        **as_record(report.planned),
        "lengths": report.lengths_from,
        "features_cached": report.features_cached,
        "cures": [
            {
                "lever": change,
                "saves_bytes": plan.needed - other.needed,
                "time_ratio": other.seconds / plan.seconds,
                "fits": other.fits,
            }
            for change, other in alternatives(plan)
        ],
        "nearest_that_fits": as_record(report.would_fit) if report.would_fit else None,
    }
    if plan.machine.ranks > 1:
        record["scaling"] = {"weak": _scaling_records(weak(plan)), "strong": _scaling_records(strong(plan))}
    return to_json(record)


def _scaling_records(points: list[ScalingPoint]) -> list[dict[str, float]]:
    return [
        {
            **asdict(point),
            "seconds": point.seconds,
            "examples_per_second": point.examples_per_second,
            "efficiency": point.efficiency(points[0]),
        }
        for point in points
    ]


def plan_text(report: PlanReport) -> str:
    """Whether it fits and with which flags, where the memory goes, how fast it is, what would change it."""
    planned, plan = report.planned, report.planned.plan
    lines = [*_request_lines(report), "", *_verdict_lines(planned), "", _memory_table(planned), ""]
    lines.append(f"speed ({speed_source(plan)}): {speed_text(plan)}")
    misfit = nearest_that_does_not_fit(planned.plans, plan) if planned.fits else None
    if misfit is not None:
        over = misfit.needed - plan.machine.device.usable
        lines.append(f"nearest that does not fit: {as_flags(misfit)}: {gib(over)} too much")
    if not planned.fits:
        lines.append(_what_would_fit(report.would_fit))
    lines += _alternatives_lines(plan)
    if plan.machine.ranks > 1:
        lines += ["", _scaling_table(plan)]
    return "\n".join(lines)


def _request_lines(report: PlanReport) -> list[str]:
    run, plan = report.request.run, report.planned.plan
    shape, device = plan.work.shape, plan.machine.device
    lines = [
        f"{run.model.model} with adapter `{run.model.adapter}` for {', '.join(run.data.tasks)}: "
        f"{shape.parameters:,} parameters, {shape.trained_parameters:,} trained",
        f"{run.batch.batch_size} examples of a task in a step, at most {run.data.max_length} tokens each; "
        f"{report.lengths_from}",
        f"{plan.machine.ranks} x {device.name}: {gib(device.memory)}, {gib(device.usable)} usable ({device.source})",
    ]
    if report.features_cached:
        lines.append(
            "features: the encoder runs over the data once, the steps are of heads alone: this run needs less than "
            "the plan, and is faster, for the plan is that of --features off"
        )
    return lines


def _verdict_lines(planned: PlannedRun) -> list[str]:
    plan = planned.plan
    worst = plan.worst_batch
    graphs = f", {plan.work.task_graphs} task graphs alive at once" if plan.work.task_graphs > 1 else ""
    return [
        f"{'FITS' if planned.fits else 'DOES NOT FIT'}: {as_flags(plan)}",
        f"  attention {plan.options.attention}, strategy {plan.strategy}; "
        f"largest micro-batch {worst.rows} x {worst.length} = {worst.tokens:,} tokens{graphs}",
    ]


def _in_gib(size: float) -> str:
    """For a column whose head says GiB."""
    return f"{size / GIBIBYTE:.2f}"


def _memory_table(planned: PlannedRun) -> str:
    plan, traced = planned.plan, planned.traced
    rows = []
    for name, size in plan.estimate.categories.items():
        traced_size = "" if traced is None or name not in traced.categories else _in_gib(traced.categories[name])
        if size or traced_size not in ("", "0.00"):
            rows.append([name, _in_gib(size), traced_size])
    rows.append(["peak", _in_gib(plan.estimate.peak), _in_gib(traced.peak) if traced else ""])
    rows.append(["with margin (5 %, rounding 2 %)", _in_gib(plan.needed), ""])
    left = plan.machine.device.usable - plan.needed
    rows.append(["left" if left >= 0 else "missing", _in_gib(abs(left)), ""])
    return table(["GiB at the peak", "closed form", "traced"], rows)


def _what_would_fit(would_fit: PlannedRun | None) -> str:
    if would_fit is None:
        return "nothing makes it fit on this device: choose a smaller --model or --max_length, or a larger --gpu"
    plan = would_fit.plan
    return (
        f"nearest plan that would fit: {as_flags(plan)}: {gib(plan.needed)}, "
        f"{plan.examples_per_second:,.0f} examples/s (an estimate)"
    )


def _alternatives_lines(plan: Plan) -> list[str]:
    changes = alternatives(plan)
    if not changes:
        return []
    rows = [
        [
            change,
            _in_gib(plan.needed - other.needed),
            f"x {other.seconds / plan.seconds:.2f}",
            "yes" if other.fits else "no",
        ]
        for change, other in changes
    ]
    lines = [
        "",
        "with one option changed (time: estimates):",
        table(["change", "saves GiB", "time", "fits then"], rows),
    ]
    if any(change.startswith("zero") and other.needed > plan.needed for change, other in changes):
        lines.append(
            "A negative saving is no mistake: ZeRO's bucket and its copies cost more than its shares save here."
        )
    return lines


def _scaling_table(plan: Plan) -> str:
    device, nodes = plan.machine.device, plan.machine.nodes
    weak_points, strong_points = weak(plan), strong(plan)
    rows = []
    for point, shared in zip(weak_points, strong_points, strict=True):
        parts = (point.compute, point.all_reduce, point.input, point.checkpoint, point.seconds)
        rows.append(
            [
                f"{point.gpus}",
                f"{point.nodes}",
                f"{point.examples:,}",
                *(f"{1e3 * part:.1f}" for part in parts),
                f"{point.examples_per_second:,.0f}",
                f"{point.efficiency(weak_points[0]):.0%}",
                f"{1e3 * shared.seconds:.1f}",
                f"{shared.efficiency(strong_points[0]):.0%}",
            ]
        )
    header = ["GPUs", "nodes", "examples", "compute", "all-reduce", "input", "checkpoint", "step", "examples/s"]
    header += ["efficiency", f"step of {plan.work.examples:,}", "efficiency"]
    network = f", {8 * device.network:g} Gbit/s between nodes (--network)" if nodes > 1 else ""
    return (
        "scale, in milliseconds of a step (estimates). Left: each GPU keeps its examples; right: all share this run's "
        f"batch.\n{table(header, rows)}\n"
        f"assumed: one ring over {device.link:g} GB/s within a node{network}, nothing overlaps, a checkpoint every "
        f"{CHECKPOINT_STEPS:,} steps at {STORAGE / 1e9:g} GB/s\n"
        "(the speed above is of the devices and their links alone)"
    )
