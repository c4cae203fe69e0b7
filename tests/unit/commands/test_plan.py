"""The verb `plan`: what it says, and what it says of mistakes."""

from __future__ import annotations

import pytest

from pal_dist.cli import main

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
    code, text = plan(capsys, "--model", "bert-base-uncased", "--attention", "eager", "--task_graphs", "3",
                      "--max_length", "256", "--tokens_per_micro_batch", "32768", *fixed)  # fmt: skip
    assert code == 3
    for words in ("other tasks' graphs", "fused attention (sdpa)", "one task's graph at a time", "an estimate",
                  "every example 256 tokens long (no data)", "zero2_offload"):  # fmt: skip
        assert words in text, words


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpu", "t5"], "did you mean t4?"),
        (["--gpus", "none"], "--gpus takes a whole number"),
        (["--attention", "flash"], "--attention is one of sdpa, eager"),
        (["--strategy", "zero4"], "--strategy zero4: there is no such strategy; did you mean zero"),
        (["--max_length", "1024"], "512 positions"),
    ],
)
def test_mistakes(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*THE_RUN, "--model", "bert-base-uncased", *arguments])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
