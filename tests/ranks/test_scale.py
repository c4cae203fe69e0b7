"""Many GPUs on paper: the schedule that 512 ranks would follow, and what `plan` says of them."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from pal_dist.cli import main
from pal_dist.data.batching import MicroBatch, Schedule, assign_micro_batches, micro_batches
from pal_dist.data.sampling import Sampling
from tests.support.lengths import lengths_like_text
from tests.support.paths import README

RANKS = 512
SIZES = (8_544, 283_003, 6_040)
"""Training examples of SST, Quora and STS in full."""


class TestSchedule:
    """What 512 ranks would do, worked out here by the code that they would run; 32 examples of a task for each rank."""

    lengths = tuple(lengths_like_text(size, seed=task) for task, size in enumerate(SIZES))
    schedule = Schedule(Sampling("round_robin", SIZES, batch_size=32 * RANKS), list(lengths))

    def tokens_of(self, micro: MicroBatch) -> int:
        return sum(int(self.lengths[task][rows].sum()) for task, rows in micro.parts)

    def test_every_rank_works_out_the_same(self) -> None:
        served = next(self.schedule.steps(3, 4))
        mine: list[list[MicroBatch]] = [
            micro_batches(served, list(self.lengths), budget=4096, rank=rank, ranks=RANKS) for rank in range(RANKS)
        ]
        assert len({tuple(task for micro in micros for task, _ in micro.parts) for micros in mine}) == 1, (
            "the same tasks, in one order"
        )
        for task, rows in served:
            dealt = [part for micros in mine for micro in micros for own, part in micro.parts if own == task]
            assert sorted(np.concatenate(dealt).tolist()) == sorted(rows.tolist()), "each example once"
        assert all(self.tokens_of(micro) <= 4096 for micros in mine for micro in micros)

    def test_tokens_are_balanced(self) -> None:
        """In no step a rank has 5 % more than the mean; over 20 steps each is within 5 % of it."""
        everything = np.zeros(RANKS)
        for served in self.schedule.steps(0, 20):
            micro_steps = assign_micro_batches(served, list(self.lengths), budget=4096, ranks=RANKS)
            tokens = np.array([[self.tokens_of(micro) for micro in by_rank] for by_rank in micro_steps]).sum(axis=0)
            assert tokens.max() / tokens.mean() < 1.05
            everything += tokens
        assert everything.max() / everything.mean() < 1.05
        assert everything.min() / everything.mean() > 0.95


def asked(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main(["plan", *words])
    assert not caught.value.code, capsys.readouterr().err
    return capsys.readouterr().out


class TestVerb:
    CLUSTER = ("--gpu", "a100-40", "--gpus", "8", "--nodes", "4", "--batch_size", "1024", "--max_length", "128")

    def test_plan_shows_it(self, capsys: pytest.CaptureFixture[str]) -> None:
        text = asked(capsys, *self.CLUSTER)
        assert "400 Gbit/s between nodes" in text
        table = text.split("scale, in milliseconds")[1]
        assert [int(gpus) for gpus in re.findall(r"^ +(\d+) ", table, flags=re.MULTILINE)] == [1, 2, 4, 8, 16, 32]
        assert "scale" not in asked(capsys, *self.CLUSTER, "--gpus", "1", "--nodes", "1")

    def test_network_is_heard(self, capsys: pytest.CaptureFixture[str]) -> None:
        slow, fast = (
            json.loads(asked(capsys, *self.CLUSTER, "--json", "true", "--network", speed))["scaling"]["weak"]
            for speed in ("10", "800")
        )
        assert slow[0] == fast[0]
        assert slow[-1]["all_reduce"] > 10 * fast[-1]["all_reduce"]
        assert slow[-1]["efficiency"] < fast[-1]["efficiency"] < 1

    def test_bad_network(self, capsys: pytest.CaptureFixture[str]) -> None:
        for network in ("fast", "0", "-1", "inf", "nan"):
            with pytest.raises(SystemExit) as caught:
                main(["plan", *self.CLUSTER, "--network", network])
            assert caught.value.code == 2
            assert "--network takes Gbit/s between nodes" in capsys.readouterr().err

    def test_readme_shows_what_is_printed(self, capsys: pytest.CaptureFixture[str]) -> None:
        text = README.read_text()
        (command,) = re.findall(r"^pal-dist plan (.* --nodes 64 .*)$", text, flags=re.MULTILINE)
        table = asked(capsys, *command.split()).split("scale, in milliseconds")[1]
        assert table.strip().splitlines()[1:12] == text.split("scale, in milliseconds")[1].splitlines()[1:12]
