"""Law 3: killed at any moment and started again, under the same strategy or another, a run ends as if never killed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from pal_dist.config.schema import RunConfig
from pal_dist.core.errors import StoppedError, UserError
from pal_dist.monitoring import run_files
from pal_dist.training.checkpoint import checkpoints, newest_intact
from pal_dist.training.setup import set_up
from pal_dist.training.trainer import Trainer
from tests.support.death import killed_and_resumed
from tests.support.ranks import run_ranks
from tests.support.training import SHARED_OUT, distances, fit

FLAGS = {"max_steps": 9, "evaluate_every": 4, "save_every": 2, "tokens_per_micro_batch": 96, "dropout": 0.1}


DEATHS = int(os.environ.get("PAL_DIST_DEATHS", "1"))
"""Random deaths of each strategy: `PAL_DIST_DEATHS=3 pytest tests/ranks/test_resume.py -k killed` for 24 in all."""


@pytest.mark.long
@pytest.mark.parametrize("death", range(DEATHS))
@pytest.mark.parametrize("strategy", ["single", "ddp", *SHARED_OUT])
def test_killed_at_random_and_resumed(strategy: str, death: int, tiny_run, cache_dir: Path, tmp_path: Path) -> None:
    ranks = 1 if strategy == "single" else 2
    name = "auto" if strategy == "single" else strategy
    clean = run_ranks(fit, tiny_run(**FLAGS, strategy=name, output_dir=tmp_path / "clean"), cache_dir, ranks=ranks)
    run = tiny_run(**FLAGS, strategy=name, output_dir=tmp_path / "killed")
    seed = 8 * death + sorted(["single", "ddp", *SHARED_OUT]).index(strategy)
    what, resumed = killed_and_resumed(run, cache_dir, seed=seed, ranks=ranks)
    for before, after in zip(clean, resumed, strict=True):
        assert not isinstance(after, Exception), (what, after)
        assert after[1] == before[1], what
        for parameter, value in before[0].items():
            np.testing.assert_array_equal(after[0][parameter], value, err_msg=f"{what}: {parameter}")


@pytest.mark.long
def test_from_strategy_to_strategy(tiny_run, cache_dir: Path, tmp_path: Path) -> None:
    """Stopped by a signal to one rank, and gone on with elsewhere: 2 ranks, 1 rank, every kind of strategy."""
    flags = {**FLAGS, "dropout": 0.0}
    plain = run_ranks(fit, tiny_run(**flags, output_dir=tmp_path / "plain"), cache_dir, ranks=1)[0]
    folder = tmp_path / "moved"
    chain = [("ddp", 2, 2), ("zero2", 2, 3), ("zero3", 2, 4), ("fsdp2", 2, 5), ("zero1", 2, 6), ("zero2_offload", 2, 7)]
    for strategy, ranks, stop_at in chain:
        answers = run_ranks(
            fit, tiny_run(**flags, strategy=strategy, output_dir=folder), cache_dir, stop_at, ranks=ranks
        )
        for answer in answers:
            assert isinstance(answer, StoppedError), (strategy, answer)
            assert answer.exit_code == 75
        assert "SIGTERM" in str(answers[-1])
        assert "on another rank" in str(answers[0])
        assert checkpoints(folder / "checkpoints")[-1].name == f"step-{stop_at:08d}"
    moved = run_ranks(fit, tiny_run(**flags, output_dir=folder), cache_dir, ranks=1)[0]
    assert moved[1]["examples"] == plain[1]["examples"]
    whole, worst = distances(moved[0], plain[0])
    assert whole < 1e-6
    assert worst < 1e-5
    for task, values in plain[1]["metrics"].items():
        assert moved[1]["metrics"][task] == pytest.approx(values, abs=1e-4, nan_ok=True)


class TestDamage:
    @pytest.fixture
    def saved(self, tiny_run, cache_dir: Path) -> RunConfig:
        run: RunConfig = tiny_run(max_steps=4, evaluate_every=2)
        fit(run, cache_dir)
        return run

    def test_the_older_one_is_used(self, saved: RunConfig, cache_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        folder = Path(str(saved.train.output_dir)) / "checkpoints"
        older, newest = checkpoints(folder)
        part = next(newest.glob("*.safetensors"))
        os.truncate(part, part.stat().st_size - 7)
        assert newest_intact(folder) == older
        said = capsys.readouterr().err
        assert f"{newest} is damaged" in said
        assert "bytes, expected" in said
        assert fit(saved, cache_dir)[1]["step"] == 4

    def test_none_whole_is_an_error(self, saved: RunConfig, cache_dir: Path) -> None:
        for path in checkpoints(Path(str(saved.train.output_dir)) / "checkpoints"):
            next(path.glob("*.safetensors")).unlink()
        with pytest.raises(UserError, match="every checkpoint is damaged"):
            fit(saved, cache_dir)

    def test_a_draft_is_never_chosen(self, saved: RunConfig) -> None:
        folder = Path(str(saved.train.output_dir)) / "checkpoints"
        whole = checkpoints(folder)
        (folder / ".step-00000009.draft").mkdir()
        (folder / "step-00000010").mkdir()
        assert checkpoints(folder) == whole


def test_stopped_by_a_file(tiny_run, cache_dir: Path, tmp_path: Path) -> None:
    run = tiny_run(max_steps=5)
    trainer = Trainer(set_up(run, {}, cache_dir=cache_dir))
    (tmp_path / "run" / run_files.STOP).touch()
    with pytest.raises(StoppedError, match="stopped before step 1, as asked"):
        trainer.fit()
    trainer.run.report.close()
    trainer.engine.close()
    assert len(checkpoints(tmp_path / "run" / "checkpoints")) == 1


def test_how_many_are_kept(tiny_run, cache_dir: Path, tmp_path: Path) -> None:
    fit(tiny_run(max_steps=9, save_every=1, keep_checkpoints=3), cache_dir)
    assert [path.name[-1] for path in checkpoints(tmp_path / "run" / "checkpoints")] == ["7", "8", "9"]
