"""The verb `plan`: what it says, and what it says of mistakes."""

from __future__ import annotations

import pytest

from pal_dist.cli import main
from pal_dist.commands.options import PLAN_OPTIONS
from pal_dist.commands.plan import PlanRequest, make_plan, request_from_flags
from pal_dist.config.resolve import resolve
from pal_dist.memory.devices import DEVICES

THE_RUN = [
    "plan",
    "--gpu",
    "t4",
    "--gpus",
    "1",
    "--tasks",
    "sst,para,sts",
    "--batch_size",
    "128",
    "--max_length",
    "512",
]


def plan(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([*THE_RUN, *arguments])
    return int(ended.value.code or 0), capsys.readouterr().out


def test_words(capsys: pytest.CaptureFixture[str]) -> None:
    fixed = ["--precision", "fp32", "--optimizer", "adamw", "--checkpoint_layers", "0"]
    code, text = plan(
        capsys,
        "--model",
        "bert-base-uncased",
        "--attention",
        "plain",
        "--task_graphs",
        "3",
        "--max_length",
        "256",
        "--tokens_per_micro_batch",
        "32768",
        *fixed,
    )
    assert code == 3
    for phrase in (
        "other tasks' graphs",
        "fused attention (sdpa)",
        "one task's graph at a time",
        "an estimate",
        "every example 256 tokens long (no data)",
        "zero2_offload",
    ):
        assert phrase in text, phrase


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpu", "t5"], "did you mean t4?"),
        (["--gpus", "none"], "--gpus takes a whole number"),
        (["--attention", "fast"], "'fast'"),
        (["--strategy", "zero4"], "--strategy zero4: there is no such strategy; did you mean zero"),
        (["--max_length", "1024"], "512 positions"),
        (["--nodes", "0"], "--nodes takes a whole number from 1; found '0'"),
        (["--task_graphs", "-1"], "--task_graphs takes a whole number from 1; found '-1'"),
        (["--network", "fast"], "--network takes Gbit/s between nodes, above 0; found 'fast'"),
        (["--network", "inf"], "--network takes Gbit/s between nodes, above 0; found 'inf'"),
    ],
)
def test_mistakes(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*THE_RUN, "--model", "bert-base-uncased", *arguments])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_help_names_every_device() -> None:
    """The table of devices is not imported for help: it would bring PyTorch."""
    assert PLAN_OPTIONS["gpu"].startswith(f"Kind of GPU: {', '.join(DEVICES)}, or cpu;")


def test_the_request_as_typed() -> None:
    run, origins = resolve({"optimizer": "adamw"})
    assert request_from_flags(run, origins, {}) == PlanRequest(run, origins)
    options = {"gpu": "t4", "gpus": "4", "nodes": "2", "network": "100", "task_graphs": "3"}
    request = request_from_flags(run, origins, options)
    assert (request.gpu, request.gpus, request.nodes, request.task_graphs) == ("t4", 4, 2, 3)
    assert request.network == 12.5  # 1e9 bytes a second
    assert request.is_given("optimizer")
    assert not request.is_given("precision")


def test_what_is_given_is_fixed() -> None:
    """Even where it is the default: whoever names the optimizer wants it."""
    free = make_plan(PlanRequest(*resolve({}), gpu="a100-40", gpus=4), certify=False)
    fixed = make_plan(PlanRequest(*resolve({"optimizer": "adamw"}), gpu="a100-40", gpus=4), certify=False)
    assert {plan.options.optimizer for plan in free.planned.plans} > {"adamw"}
    assert {plan.options.optimizer for plan in fixed.planned.plans} == {"adamw"}
