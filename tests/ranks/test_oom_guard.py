"""Law 4, invisible retry: out of memory in forward or backward, on any ranks, and the step still happens once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pal_dist.config.schema import RunConfig
from pal_dist.core.errors import DoesNotFitError
from pal_dist.distributed.engine import Engine
from pal_dist.distributed.hardware import Hardware
from pal_dist.memory.tracker import Tracker
from pal_dist.training.evaluate import predict
from pal_dist.training.setup import set_up
from pal_dist.training.trainer import Trainer
from tests.support.out_of_memory import arm, full
from tests.support.ranks import run_ranks
from tests.support.training import Parameters, assert_same


def train(
    run: RunConfig, cache_dir: Path, place: str = "", faulty: tuple[int, ...] = (), micro_step: str = "first"
) -> Any:
    trainer = Trainer(set_up(run, {}, cache_dir=cache_dir))
    trainer.engine.model.double()
    trainer.engine.backend.buffer = trainer.engine.backend.buffer.double()
    if trainer.engine.rank in faulty:
        arm(trainer, place, micro_step)
    try:
        state = trainer.fit()
    finally:
        trainer.run.report.close()
    values = {name: value.detach().numpy() for name, value in trainer.engine.model.named_parameters()}
    return values, state.tokens_per_micro_batch, state.examples


@pytest.fixture(scope="module")
def clean(
    tiny_bert: Path, small_data: Path, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Parameters, int]:
    from tests.support.tiny_run import make_tiny_run

    run = make_tiny_run(tiny_bert, small_data, cache_dir, tmp_path_factory.mktemp("clean"), tokens_per_micro_batch=96)
    values, _, examples = run_ranks(train, run, cache_dir)[0]
    return values, examples


@pytest.mark.parametrize("micro_step", ["first", "last"])
@pytest.mark.parametrize("faulty", [(0,), (1,), (0, 1)])
@pytest.mark.parametrize("place", ["forward", "backward"])
def test_the_step_is_run_again(
    place: str, faulty: tuple[int, ...], micro_step: str, clean: tuple[Parameters, int], tiny_run, cache_dir: Path
) -> None:
    run = tiny_run(tokens_per_micro_batch=96)
    answers = run_ranks(train, run, cache_dir, place, faulty, micro_step)
    for answer in answers:
        assert not isinstance(answer, Exception), answer
        values, tokens, examples = answer
        assert tokens == 48  # halved once, on both ranks
        assert examples == clean[1]  # each counted once
        assert_same(values, clean[0])


@pytest.mark.parametrize("faulty", [(0,), (1,), (0, 1)])
def test_all_reduce_is_run_again(
    faulty: tuple[int, ...], clean: tuple[Parameters, int], tiny_run, cache_dir: Path
) -> None:
    """The others are already waiting in the collective: it is tried again after the caches are freed."""
    for values, tokens, _ in run_ranks(train, tiny_run(tokens_per_micro_batch=96), cache_dir, "all-reduce", faulty):
        assert tokens == 96
        assert_same(values, clean[0])


@pytest.mark.parametrize("faulty", [(0,), (1,), (0, 1)])
def test_the_update_stops_every_rank(faulty: tuple[int, ...], tiny_run, cache_dir: Path) -> None:
    answers = run_ranks(train, tiny_run(), cache_dir, "optimizer", faulty)
    for rank, answer in enumerate(answers):
        assert isinstance(answer, DoesNotFitError)
        assert answer.exit_code == 3
        assert "step 3: out of memory in the optimizer's update" in str(answer)
        assert ("Tried to allocate 2.00 GiB" in str(answer)) == (rank in faulty)
        assert "The last checkpoint is whole" in str(answer)


def test_dropout_is_reproducible_and_leaks_nothing(tiny_run, cache_dir: Path, tmp_path: Path) -> None:
    """The same fault gives the same run, bit for bit; later steps draw the very masks they would have drawn."""
    seen = []
    for number in range(2):
        run = tiny_run(tokens_per_micro_batch=96, dropout=0.3, output_dir=tmp_path / str(number))
        seen.append(run_ranks(train, run, cache_dir, "backward", (0,), ranks=1)[0])
    assert seen[0][1] == 48
    assert all(np.array_equal(value, seen[1][0][name]) for name, value in seen[0][0].items())


def test_checkpointing_comes_after_the_smallest_cut_and_then_the_end(tiny_run, cache_dir: Path) -> None:
    run = tiny_run(tokens_per_micro_batch=96, max_steps=1)
    trainer = Trainer(set_up(run, {}, cache_dir=cache_dir))
    told: list[str] = []
    trainer.guard.on_change = told.append
    trainer.engine.model.get_submodule("bert.encoder.layer.0").register_forward_pre_hook(full)
    with pytest.raises(DoesNotFitError, match=r"single examples of [0-9]+ tokens and every layer checkpointed"):
        trainer.fit()
    assert "micro-batches of at most 48 tokens (were 96)" in told[0]
    assert "checkpointing" in told[-1]
    assert trainer.state.checkpoint_layers == 1
    trainer.run.report.close()
    trainer.engine.close()


@pytest.mark.parametrize("share", [0.75, 0.5, 0.3])
def test_a_full_card_is_survived(share: float, tiny_run, cache_dir: Path, tmp_path: Path) -> None:
    """No fault is injected: the tracker refuses allocations above a limit, wherever they happen to come."""
    results, highest = [], 0
    for limit in (None, share):
        run = tiny_run(output_dir=tmp_path / str(limit), tokens_per_micro_batch=800, max_steps=3, batch_size=16)
        trainer = Trainer(set_up(run, {}, cache_dir=cache_dir))
        model = trainer.engine.model.double()
        with Tracker(model) as tracker:
            tracker.mark(model.parameters(), "parameters")
            static = 4 * tracker.bytes  # with gradients and both moments
            if limit:
                tracker.limit = static + int(limit * (highest - static))
            trainer.fit()
        highest = highest or tracker.peak
        results.append(({name: value.detach().numpy() for name, value in model.named_parameters()}, trainer.state))
        trainer.run.report.close()
        trainer.engine.close()
    (plain, _), (capped, state) = results
    assert state.tokens_per_micro_batch < 800
    assert_same(capped, plain)


def train_under_zero(run: RunConfig, cache_dir: Path, place: str = "", faulty: tuple[int, ...] = ()) -> Any:
    trainer = Trainer(set_up(run, {}, cache_dir=cache_dir))
    if trainer.engine.rank in faulty:
        arm(trainer, place, "last")
    state = trainer.fit()
    trainer.run.report.close()
    parameters = {name: value.numpy() for name, value in trainer.engine.full_state_dict().items()}
    return parameters, state.tokens_per_micro_batch


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["zero2", "zero2_offload"])
def test_the_step_is_run_again_under_zero(strategy: str, tiny_run, cache_dir: Path, tmp_path: Path) -> None:
    """Its gradients stay local until all ranks have voted, so it can be dropped like any other."""
    seen = []
    for place in ("", "forward", "backward"):
        run = tiny_run(tokens_per_micro_batch=96, strategy=strategy, output_dir=tmp_path / f"run_{place}")
        seen.append(run_ranks(train_under_zero, run, cache_dir, place, (1,) if place else ())[0])
        assert not isinstance(seen[-1], Exception), seen[-1]
    for values, tokens in seen[1:]:
        assert tokens == 48
        for name, value in seen[0][0].items():
            if "key.bias" not in name:
                np.testing.assert_allclose(values[name], value, rtol=0, atol=5e-6, err_msg=name)


def test_dropout_is_the_same_when_layers_are_computed_again(tiny_run, cache_dir: Path, tmp_path: Path) -> None:
    seen = []
    for layers in (0, 1, 2):
        run = tiny_run(dropout=0.3, checkpoint_layers=layers, output_dir=tmp_path / str(layers))
        seen.append(run_ranks(train, run, cache_dir, ranks=1)[0][0])
    assert_same(seen[1], seen[0])
    assert_same(seen[2], seen[0])


def evaluate_on_a_small_card(run: RunConfig, cache_dir: Path) -> Any:
    """The second rank cannot hold more than 100 tokens at once."""
    trainer = Trainer(set_up(run, {}, cache_dir=cache_dir))
    engine = trainer.engine

    def small(_: Any, arguments: tuple[Any, ...]) -> None:
        if engine.rank == 1 and arguments[0].tokens > 100:
            full()

    found = []
    for hook in (False, True):
        if hook:
            engine.model.register_forward_pre_hook(small)
        found.append(
            predict(engine, trainer.run.tasks[0], next(iter(trainer.run.corpora.train.values())), budget=800).logits
        )
    trainer.run.report.close()
    return found


def test_evaluation_halves_its_batches(tiny_run, cache_dir: Path) -> None:
    for plain, halved in run_ranks(evaluate_on_a_small_card, tiny_run(), cache_dir):
        np.testing.assert_allclose(halved, plain, atol=1e-5)


def plan_with_unequal_ranks(run: RunConfig, cache_dir: Path) -> Any:
    """The second rank has a fifth of the first one's memory."""
    Engine.hardware = lambda engine: Hardware("cpu", 3_000_000 if engine.rank else 15_000_000)  # type: ignore[method-assign]
    trainer = Trainer(set_up(run, {}, cache_dir=cache_dir))
    trainer.run.report.close()
    return trainer.state.tokens_per_micro_batch, trainer.state.checkpoint_layers


def test_every_rank_runs_the_plan_of_the_smallest(tiny_run, cache_dir: Path, tmp_path: Path) -> None:
    run = tiny_run(batch_size=64)
    first, second = run_ranks(plan_with_unequal_ranks, run, cache_dir)
    assert first == second
    record = json.loads((tmp_path / "run" / "memory.json").read_text())
    assert record["plan"]["device"]["memory"] == 3_000_000
    assert record["plan"]["needed_bytes_with_margin"] <= record["plan"]["device"]["usable"]


@pytest.mark.parametrize("memory", ["off", "plan_only"])
def test_memory_can_be_left_alone(memory: str, tiny_run, cache_dir: Path, tmp_path: Path) -> None:
    trainer = Trainer(set_up(tiny_run(memory=memory, tokens_per_micro_batch=None), {}, cache_dir=cache_dir))
    planned = tmp_path / "run" / "memory.json"
    assert planned.exists() == (memory == "plan_only")
    if memory == "off":
        assert trainer.state.tokens_per_micro_batch == RunConfig().memory.token_budget
    else:
        assert json.loads(planned.read_text())["evidence"] is None
    trainer.run.report.close()
    trainer.engine.close()
