"""The plan: what fits is said to fit, what is said to fit does fit, and a run does what was planned for it."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from pal_dist.cli import main
from pal_dist.core.errors import DoesNotFitError
from pal_dist.distributed.engine import Engine
from pal_dist.distributed.hardware import Hardware
from pal_dist.training.setup import set_up
from pal_dist.training.trainer import Trainer
from tests.support.limits import outcome
from tests.support.ranks import in_parallel

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


@pytest.mark.long
def test_planned_runs_stay_within_simulated_cards() -> None:
    """No run exceeds the card that it was planned for, and where memory is the bottleneck the card is used."""
    outcomes = in_parallel(outcome, range(30))  # raises where a run needs more than its card
    tight = [found.share for found in outcomes if found.bottleneck]
    assert len(tight) > 8
    assert statistics.mean(tight) > 0.8


class TestVerb:
    @pytest.mark.parametrize("model", ["bert-base-uncased", "bert-large-uncased", "minilm"])
    def test_fits_a_t4(self, model: str, capsys: pytest.CaptureFixture[str]) -> None:
        code, text = plan(capsys, "--model", model, "--json", "true")
        found = json.loads(text)
        assert (code, found["fits"]) == (0, True)
        assert found["needed_bytes_with_margin"] <= found["device"]["usable"]
        assert found["precision"] == "fp16"  # a T4 only emulates bf16
        assert found["traced_peak_bytes"] * 1.05 <= found["device"]["usable"]
        all_at_once = 128 * 512
        assert found["traced_peak_bytes"] > 0.85 * found["device"]["usable"] or (
            found["tokens_per_micro_batch"] == all_at_once
        )

    def test_what_does_not_fit(self, capsys: pytest.CaptureFixture[str]) -> None:
        fixed = ["--precision", "fp32", "--optimizer", "adamw", "--checkpoint_layers", "0"]
        code, text = plan(capsys, "--model", "bert-large-uncased", *fixed, "--tokens_per_micro_batch", "65536")
        assert code == 3
        assert "DOES NOT FIT: --precision fp32 --optimizer adamw --checkpoint_layers 0" in text
        assert "nearest plan that would fit: --precision fp16" in text
        assert "missing" in text
        assert "checkpointing every layer" in text
        # The very plan that it names fits.
        named = text.split("would fit: ")[1].split(": ")[0].split()
        assert plan(capsys, "--model", "bert-large-uncased", *named)[0] == 0

    def test_lengths_of_the_data(self, corpus_dir: Path, cache_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        code, text = plan(
            capsys, "--model", "bert-base-uncased", "--data_dir", str(corpus_dir), "--cache_dir", str(cache_dir)
        )
        assert code == 0
        assert "token lengths of the training files" in text


def test_a_run_that_cannot_fit_is_refused_before_step_one(
    tiny_run, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    monkeypatch.setattr(Engine, "hardware", lambda _: Hardware("cpu", 300_000))
    run = tiny_run()
    with pytest.raises(DoesNotFitError, match=r"does not fit: it needs .* GiB .*--memory off tries it all the same"):
        set_up(run, {}, cache_dir=cache_dir)
    assert not Path(str(run.train.output_dir)).exists()
    trainer = Trainer(set_up(tiny_run(memory="off"), {}, cache_dir=cache_dir))
    trainer.run.report.close()
    trainer.engine.close()


def test_a_tight_plan_is_proved_and_written_down(tiny_run, cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device with little room to spare: the worst batches are run, and what they showed lies beside the run."""

    monkeypatch.setattr(Engine, "hardware", lambda _: Hardware("cpu", 1_400_000))
    run = tiny_run(max_steps=3, evaluate_every="3")
    trainer = Trainer(set_up(run, {}, cache_dir=cache_dir))
    record = json.loads((trainer.run.folder / "memory.json").read_text())
    assert record["evidence"]["micro_batches"]
    assert record["tokens_per_micro_batch"] == trainer.state.tokens_per_micro_batch
    trainer.fit()
    trainer.state.tokens_per_micro_batch = 64  # as if the guard had made it smaller after the checkpoint's plan
    trainer.run.report.close()
    trainer.engine.close()
    again = Trainer(set_up(run, {}, cache_dir=cache_dir))
    assert again.state.tokens_per_micro_batch == record["tokens_per_micro_batch"]
    again.run.report.close()
    again.engine.close()
