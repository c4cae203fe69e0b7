"""Law 9: ranks that are about to do different things, or have lost each other, end in words and never hang."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import pal_dist.distributed.watchdog
from pal_dist.config.schema import RunConfig
from pal_dist.core.errors import DoesNotFitError, RankLostError, UserError
from pal_dist.distributed.engine import Engine
from pal_dist.distributed.watchdog import HUNG, LOST
from pal_dist.training.setup import set_up
from pal_dist.training.trainer import Trainer
from tests.support.ranks import Died, run_ranks

SECONDS = 30


def train(run: RunConfig, cache_dir: Path, trouble: str = "") -> Any:
    """Rank 1 is the odd one."""
    odd = os.environ["RANK"] == "1"
    if odd and trouble == "config":
        run = replace(run, optimizer=replace(run.optimizer, learning_rate=0.5))
    if odd and trouble == "world":
        os.environ["WORLD_SIZE"] = "3"
    trainer = Trainer(set_up(run, {}, cache_dir=cache_dir))
    honest = trainer.step

    def step(served: Any) -> Any:
        if odd and trainer.state.step == 3:
            if trouble == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if trouble == "hangs":
                time.sleep(2 * SECONDS)
        return honest(served)

    trainer.step = step  # type: ignore[method-assign]
    if odd and trouble == "task":
        steps = trainer.run.schedule.steps
        trainer.run.schedule.steps = lambda *ends: (served[::-1] for served in steps(*ends))  # type: ignore[method-assign,assignment]
    if odd and trouble == "shape":
        trainer.state.tokens_per_micro_batch //= 2
    if odd and trouble == "memory":
        trainer.engine.model.get_submodule("bert.encoder.layer.1").register_forward_pre_hook(full)
    trainer.fit()
    return "done"


def full(*_: Any) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. (injected)")


@pytest.fixture
def meet(tiny_run, cache_dir: Path):
    def run(trouble: str, **flags: object) -> list[Any]:
        begun = time.monotonic()
        answers = run_ranks(train, tiny_run(tokens_per_micro_batch=96, **flags), cache_dir, trouble)
        assert time.monotonic() - begun < SECONDS
        return answers

    return run


def test_without_trouble(meet) -> None:
    assert meet("") == ["done", "done"]


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        ("config", ["the ranks were not given the same run", "learning_rate: rank 0 has 0.001, rank 1 has 0.5"]),
        ("world", ["not promised the same number of ranks", "rank 0 was promised 2", "rank 1 was promised 3"]),
        ("task", ["rank 0: step 1 of 6: 8 sst, 8 para, 8 sts", "rank 1: step 1 of 6: 8 sts, 8 para, 8 sst"]),
        ("shape", ["rank 0: step 1", "at most 96 at once", "rank 1: step 1", "at most 48 at once"]),
    ],
)
@pytest.mark.parametrize("strategy", ["ddp", "zero3"])
def test_disagreement_is_named_on_every_rank(strategy: str, trouble: str, words: list[str], meet) -> None:
    for answer in meet(trouble, strategy=strategy):
        assert isinstance(answer, UserError), answer
        assert answer.exit_code == 2
        for word in words:
            assert word in str(answer)


def test_a_lost_rank_is_noticed(meet) -> None:
    """gloo notices a closed connection by itself; a network that is cut is noticed by the watchdog (below)."""
    survivor, killed = meet("killed")
    assert isinstance(killed, Died)
    assert killed.code == -signal.SIGKILL
    assert isinstance(survivor, RankLostError)
    assert "rank 0: another rank is gone" in str(survivor)


def test_a_hang_is_named(meet) -> None:
    answers = meet("hangs", hang_minutes=0.1)
    for answer in answers:
        assert isinstance(answer, Died)
        assert answer.code == HUNG
    said = "".join(answer.said for answer in answers)
    assert "has not moved for 6 s" in said
    assert "rank 0 in step 4" in said
    assert "rank 1 in step 4" in said


def watch_a_silent_rank() -> Any:
    pal_dist.distributed.watchdog.LOST_SECONDS = 5.0
    engine = Engine()
    engine.group.start_watchdog(1000)
    if engine.rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)  # its connections stay open
    time.sleep(3 * SECONDS)


def test_a_silent_rank_is_noticed() -> None:
    survivor, _ = run_ranks(watch_a_silent_rank, survivors=True)
    assert isinstance(survivor, Died)
    assert survivor.code == LOST
    assert "rank 1 is gone; it was last seen starting" in survivor.said


def leave_at_different_times() -> str:
    engine = Engine()
    engine.group.start_watchdog(1000)
    time.sleep(3 if engine.rank == 1 else 1)
    engine.group.leave()
    return "left"


def test_rank_0_may_be_done_first() -> None:
    """It holds the store: without a goodbye, the others would believe that it is lost."""
    assert run_ranks(leave_at_different_times) == ["left", "left"]


def test_out_of_memory_where_parameters_are_shared_out(meet) -> None:
    """It cannot be run again, so every rank ends with the same code, and says with what to go on."""
    other, full_one = meet("memory", strategy="zero3")
    assert isinstance(full_one, DoesNotFitError)
    assert "--tokens_per_micro_batch 48, or --strategy zero2" in str(full_one)
    assert isinstance(other, Died)
    assert other.code == DoesNotFitError.exit_code
    assert "rank 0 stops, because rank 1 does: step 1: out of memory in a micro-batch" in other.said


VICTIM = """
import os, signal
from pal_dist.cli import main
from pal_dist.training.trainer import Trainer
honest = Trainer.step
def step(self, served):
    if self.state.step == 5 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return honest(self, served)
Trainer.step = step
main()
"""


@pytest.mark.long
def test_restarted_by_torchrun(tiny_bert: Path, small_data: Path, cache_dir: Path, tmp_path: Path) -> None:
    """A rank is killed; the launcher starts all of them again, and they go on from the last checkpoint."""
    (tmp_path / "victim.py").write_text(VICTIM)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "--max-restarts",
        "1",
        "--monitor-interval",
        "0.2",
        tmp_path / "victim.py",
        "train",
        "--data_dir",
        small_data,
        "--model",
        tiny_bert,
        "--cache_dir",
        cache_dir,
        "--max_length",
        "48",
        "--max_steps",
        "7",
        "--save_every",
        "2",
        "--batch_size",
        "8",
        "--adapter_hidden",
        "12",
        "--adapter_heads",
        "2",
        "--output_dir",
        tmp_path / "run",
    ]
    ended = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert ended.returncode == 0, ended.stderr
    assert "resumed after step 4" in ended.stderr
    assert (tmp_path / "run" / "results.json").is_file()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"step_tasks": "one"}, "--step_tasks one under zero2.*use --step_tasks all, or --strategy ddp"),
        ({"optimizer": "adamw_8bit"}, "--optimizer adamw_8bit under zero2.*use --optimizer adamw, or --strategy ddp"),
    ],
)
def test_refused(flags: dict[str, str], words: str, tiny_run, cache_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        set_up(tiny_run(strategy="zero2", **flags), {}, cache_dir=cache_dir)
    assert not (tmp_path / "run").exists()
