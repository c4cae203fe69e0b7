"""Law 10 for recorded passes: fixed sizes, fixed buffers and replays train what the packed path trains.

A tape (tests/support/tape_recorder.py) stands for CUDA graphs: it runs the same operators on the same memory again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pal_dist.training.pass_graphs
from pal_dist.config.schema import RunConfig
from pal_dist.data.batch import Batch
from pal_dist.distributed.precision import LossScale
from pal_dist.training.graph_recorder import PlainRecorder, Work
from pal_dist.training.setup import set_up
from pal_dist.training.trainer import Trainer
from tests.support.death import killed_and_resumed
from tests.support.out_of_memory import arm
from tests.support.ranks import run_ranks
from tests.support.tape_recorder import TapeRecorder
from tests.support.training import Parameters, assert_same, fit, plain_reference, train_in_float64

STATIC = {"cuda_graphs": "static", "attention": "padded", "max_steps": 9, "max_gradient_norm": 0.5}

CASES: dict[str, dict[str, Any]] = {
    "PALs": {},
    "PALs that wake": {"adapter": "progressive_pal"},
    "no adapter, mean pooling": {"adapter": "none", "pooling": "mean"},
    "frozen encoder": {"mode": "pretrain", "adapter": "houlsby"},
    "learned variances": {"weighting": "uncertainty"},
    "several micro-batches": {"tokens_per_micro_batch": 96},
}


class Failing:
    """A device that records nothing."""

    def record(self, work: Work, batch: Batch) -> Work:
        raise RuntimeError("operation not permitted when stream is capturing (injected)")


class Lying:
    """A graph that gives other gradients than its kernels."""

    def record(self, work: Work, batch: Batch) -> Work:
        return lambda _: None


def trained(run: RunConfig, cache_dir: Path, recorder: Any = None, change: Any = None) -> tuple[Parameters, Any]:
    """Final parameters in float64, and what ran the micro-batches."""
    trainer = Trainer(set_up(run, {}, cache_dir=cache_dir))
    trainer.engine.model.double()
    if recorder is not None:
        assert trainer.graphs is not None
        trainer.graphs.recorder = recorder
    if change is not None:
        change(trainer)
    trainer.fit()
    trainer.run.report.close()
    trainer.engine.close()
    values = {name: value.detach().numpy() for name, value in trainer.engine.model.named_parameters()}
    return values, trainer.graphs


@pytest.mark.parametrize("case", CASES)
def test_replays_train_what_packed_micro_batches_train(case: str, tiny_run, cache_dir: Path, tmp_path: Path) -> None:
    flags = STATIC | {"max_steps": 24, "window_batches": 8, "batch_lengths": "even"} | CASES[case]
    packed, graphs = trained(tiny_run(**{**flags, "cuda_graphs": "off"}), cache_dir)
    assert graphs is None
    tape = TapeRecorder()
    replayed, graphs = trained(tiny_run(**flags, output_dir=tmp_path / "tape"), cache_dir, tape)
    assert_same(replayed, packed, 1e-11)
    assert not graphs.failed
    assert tape.replays == graphs.replays > 5
    assert tape.recorded == graphs.recordings < 20


def test_a_replay_takes_nothing_from_the_host(tiny_run, cache_dir: Path, tmp_path: Path) -> None:
    """With dropout: masks are those of the same kernels one by one, to the bit."""
    flags = STATIC | {"max_steps": 20, "window_batches": 8, "batch_lengths": "even", "dropout": 0.1}
    plain, _ = trained(tiny_run(**flags), cache_dir, PlainRecorder())
    tape, graphs = trained(tiny_run(**flags, output_dir=tmp_path / "tape"), cache_dir, TapeRecorder())
    assert graphs.replays > 5
    for name, value in plain.items():
        np.testing.assert_array_equal(tape[name], value, err_msg=name)


def test_what_is_not_fixed_is_seen(tiny_run, cache_dir: Path, tmp_path: Path) -> None:
    """The tape can fail: attention by length takes lengths from the host, so its replays are of other rows."""
    flags = STATIC | {"max_steps": 20, "window_batches": 8, "batch_lengths": "even"}
    right, _ = trained(tiny_run(**flags), cache_dir, PlainRecorder())
    flags |= {"attention": "plain"}
    wrong, graphs = trained(tiny_run(**flags, output_dir=tmp_path / "wrong"), cache_dir, TapeRecorder())
    assert graphs.replays
    with pytest.raises(AssertionError):
        assert_same(wrong, right, 1e-6)


@pytest.mark.parametrize("lengths", ["alike", "even"])
def test_same_gradient_on_any_ranks(lengths: str, tiny_run, cache_dir: Path, tmp_path: Path) -> None:
    """Law 1 with fixed sizes."""
    flags = STATIC | {"attention": "auto", "batch_lengths": lengths}
    reference = plain_reference(tiny_run(**flags), cache_dir)
    if lengths == "even":  # the plain loop knows no such order
        reference, _ = trained(tiny_run(**{**flags, "cuda_graphs": "off"}, output_dir=tmp_path / "off"), cache_dir)
    for number, (ranks, budget) in enumerate([(1, 4096), (1, 64), (2, 4096), (2, 64)]):
        run = tiny_run(**flags, tokens_per_micro_batch=budget, output_dir=tmp_path / str(number))
        for answer in run_ranks(train_in_float64, run, cache_dir, ranks=ranks):
            assert not isinstance(answer, Exception), answer
            assert_same(answer[0], reference)


@pytest.mark.parametrize("recorder", [Failing, Lying])
def test_a_failed_recording_costs_nothing(
    recorder: Any, tiny_run, cache_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = STATIC | {"max_steps": 20, "window_batches": 8, "batch_lengths": "even", "dropout": 0.1}
    expected, _ = trained(tiny_run(**flags), cache_dir, PlainRecorder())
    values, graphs = trained(tiny_run(**flags, output_dir=tmp_path / "failed"), cache_dir, recorder())
    for name, value in expected.items():
        np.testing.assert_array_equal(values[name], value, err_msg=name)
    assert graphs.failed
    assert not graphs.recordings
    assert len(graphs.failed) <= pal_dist.training.pass_graphs.GIVES_UP_AFTER
    said = capsys.readouterr()
    assert (said.out + said.err).count("could not be recorded as a CUDA graph") == len(graphs.failed)


@pytest.mark.parametrize("place", ["forward", "backward"])
def test_a_step_that_the_guard_runs_again(place: str, tiny_run, cache_dir: Path, tmp_path: Path) -> None:
    """Law 4: limits are tightened, graphs give their memory back, the parameters are those of the plain path."""
    flags = STATIC | {"tokens_per_micro_batch": 4096}
    packed, _ = trained(tiny_run(**{**flags, "cuda_graphs": "off"}), cache_dir)
    again, graphs = trained(
        tiny_run(**flags, output_dir=tmp_path / "again"),
        cache_dir,
        TapeRecorder(),
        lambda trainer: arm(trainer, place, "first"),
    )
    assert graphs.limits[0] < 4096
    assert graphs.gave_up
    assert not graphs.recorded
    assert_same(again, packed, 1e-11)


def test_graphs_and_kernels_one_by_one_in_one_step(tiny_run, cache_dir: Path, tmp_path: Path) -> None:
    """A step of several micro-batches, of which some are too large to be recorded."""
    flags = STATIC | {"max_steps": 12, "tokens_per_micro_batch": 160}
    packed, _ = trained(tiny_run(**{**flags, "cuda_graphs": "off"}), cache_dir)

    def leave_out_every_third(trainer: Trainer) -> None:
        assert trainer.graphs is not None
        signature, count = trainer.graphs._signature, iter(range(10_000))
        trainer.graphs._signature = lambda batch: None if next(count) % 3 == 0 else signature(batch)  # type: ignore

    mixed, graphs = trained(
        tiny_run(**flags, output_dir=tmp_path / "mixed"), cache_dir, TapeRecorder(), leave_out_every_third
    )
    assert 0 < graphs.replays < graphs.passes
    assert_same(mixed, packed, 1e-11)


def test_the_least_recently_used_makes_room(
    tiny_run, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = STATIC | {"max_steps": 24, "window_batches": 8, "batch_lengths": "even"}
    expected, _ = trained(tiny_run(**flags), cache_dir, PlainRecorder())
    monkeypatch.setattr(pal_dist.training.pass_graphs, "MOST_GRAPHS", 1)
    values, graphs = trained(tiny_run(**flags, output_dir=tmp_path / "few"), cache_dir, TapeRecorder())
    assert len(graphs.recorded) == 1
    assert_same(values, expected, 1e-11)


def test_killed_and_resumed(tiny_run, cache_dir: Path, tmp_path: Path) -> None:
    """Law 3: a resumed run has no graph yet, and goes on to the same bits."""
    flags = STATIC | {"evaluate_every": 4, "save_every": 2, "dropout": 0.1, "attention": "auto"}
    clean = run_ranks(fit, tiny_run(**flags, output_dir=tmp_path / "clean"), cache_dir, ranks=2)
    run = tiny_run(**flags, output_dir=tmp_path / "killed")
    _, resumed = killed_and_resumed(run, cache_dir, seed=3, ranks=2)
    for (values, _), (expected, _) in zip(resumed, clean, strict=True):
        for name, value in expected.items():
            np.testing.assert_array_equal(values[name], value, err_msg=name)


def test_steps_that_overflow(tiny_run, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """fp16's scale: it lives on the device, where replays read it; steps that overflow are skipped."""
    flags = STATIC | {"max_steps": 16, "window_batches": 8, "batch_lengths": "even", "evaluate_every": "none"}

    def train(name: str, recorder: Any, **more: Any) -> Any:
        trainer = Trainer(set_up(tiny_run(**{**flags, **more}, output_dir=tmp_path / name), {}, cache_dir=cache_dir))
        engine = trainer.engine
        engine.loss_scale = engine.backend.loss_scale = LossScale(1024.0)
        set_factors = Batch.set_factors

        def overflowing(batch: Batch, factors: Any) -> None:
            set_factors(batch, [float("inf") if trainer.state.step == 9 else factor for factor in factors])

        monkeypatch.setattr(Batch, "set_factors", overflowing)
        if trainer.graphs is not None:
            trainer.graphs.recorder = recorder
        trainer.fit()
        monkeypatch.undo()
        trainer.run.report.close()
        return trainer.engine.full_state_dict(), engine.loss_scale_state(), trainer.graphs

    packed, state, _ = train("packed", None, cuda_graphs="off")
    replayed, replayed_state, graphs = train("replayed", TapeRecorder())
    assert graphs.replays
    assert state == replayed_state
    assert state == {"scale": 512.0, "fine": 6}
    for name, value in packed.items():
        if "key.bias" not in name:
            torch.testing.assert_close(replayed[name], value, rtol=0, atol=1e-5, msg=name)
