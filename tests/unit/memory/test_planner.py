"""The plan: what fits is said to fit, what is said to fit does fit, and it is said in the right words and codes."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from pal_dist.cli import main
from pal_dist.core.errors import DoesNotFitError, UserError
from pal_dist.core.units import GIBIBYTE
from pal_dist.distributed.hardware import Hardware
from pal_dist.memory.closed_form import StepOptions
from pal_dist.memory.devices import DEVICES, device_at_hand, find_device
from pal_dist.memory.planner import as_flags, full_search_space
from pal_dist.memory.search import (
    Machine,
    Plan,
    SearchSpace,
    Workload,
    alternatives,
    candidates,
    fastest,
    largest_that_fits,
)
from pal_dist.training.setup import set_up
from pal_dist.training.trainer import Trainer
from tests.support.limits import outcome
from tests.support.random_runs import random_run, shape
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

    def test_words(self, capsys: pytest.CaptureFixture[str]) -> None:
        fixed = ["--precision", "fp32", "--optimizer", "adamw", "--checkpoint_layers", "0"]
        code, text = plan(capsys, "--model", "bert-base-uncased", "--attention", "eager", "--task_graphs", "3",
                          "--max_length", "256", "--tokens_per_micro_batch", "32768", *fixed)  # fmt: skip
        assert code == 3
        for words in ("other tasks' graphs", "fused attention (sdpa)", "one task's graph at a time", "an estimate",
                      "every example 256 tokens long (no data)", "zero2_offload"):  # fmt: skip
            assert words in text, words

    def test_lengths_of_the_data(self, corpus_dir: Path, cache_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        code, text = plan(
            capsys, "--model", "bert-base-uncased", "--data_dir", str(corpus_dir), "--cache_dir", str(cache_dir)
        )
        assert code == 0
        assert "token lengths of the training files" in text

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
    def test_mistakes(self, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as ended:
            main([*THE_RUN, "--model", "bert-base-uncased", *arguments])
        assert ended.value.code == 2
        assert message in capsys.readouterr().err


class TestSearch:
    def work(self) -> Workload:
        return Workload(shape(random_run(2).config), 64, 128, 60.0, 3, 192)

    def test_more_memory_is_never_slower(self) -> None:
        work, speeds = self.work(), []
        for name in ("t4", "a100-40", "a100-80"):
            card = replace(find_device("t4"), memory=find_device(name).memory)
            machine = Machine(card)
            found = fastest(list(candidates(work, machine, full_search_space(machine))))
            assert found is not None
            speeds.append(found.seconds)
        assert speeds == sorted(speeds, reverse=True)

    def test_widest_is_the_widest(self) -> None:
        card = replace(find_device("t4"), memory=find_device("t4").context + GIBIBYTE // 8)
        found = largest_that_fits(Plan(self.work(), Machine(card), StepOptions(), "single", 128))
        assert found.fits
        assert found.tokens < found.work.most_tokens
        assert not replace(found, tokens=found.tokens + 128).fits

    def test_every_cure_is_another_plan(self) -> None:
        base = Plan(self.work(), Machine(find_device("t4"), gpus=2), StepOptions("fp32", "eager"), "ddp", 8192)
        found = alternatives(base)
        assert len({as_flags(other) + other.strategy + other.options.attention for _, other in found}) == len(found)
        assert {"checkpointing every layer", "precision fp16", "optimizer adamw_8bit", "zero3"} <= {
            name for name, _ in found
        }

    def test_zero_and_8_bit_are_never_planned_together(self) -> None:
        choices = SearchSpace(("fp16",), strategy=("zero1", "zero2_offload"))
        assert {plan.options.optimizer for plan in candidates(self.work(), Machine(find_device("t4")), choices)} == {
            "adamw"
        }


class TestDevices:
    def test_the_table(self) -> None:
        assert set(DEVICES) >= {"t4", "p100", "v100-16", "v100-32", "a10g", "l4", "rtx3090", "rtx4090", "a100-40",
                                "a100-80", "h100", "h200"}  # fmt: skip
        for device in DEVICES.values():
            assert device.source
            assert 0 < device.usable < device.memory
            assert device.low_precision == ("bf16" if device.capability >= (8, 0) else "fp16")

    def test_kernels(self) -> None:
        import torch

        t4, a100 = find_device("T4"), find_device("a100_40")
        kernel = {"dtype": torch.float16, "head_width": 64, "masked": True}
        assert t4.attention_kernel(**kernel) == "efficient"
        assert t4.attention_kernel(**{**kernel, "head_width": 17}) == "math"  # a PAL of 204 with 12 heads, unpadded
        assert t4.attention_kernel(**{**kernel, "masked": False}) == "efficient"  # no flash before capability 8.0
        assert a100.attention_kernel(**{**kernel, "masked": False}) == "flash"
        assert a100.attention_kernel(**kernel) == "efficient"
        assert t4.attention_kernel(**{**kernel, "dtype": torch.bfloat16}) == "math"

    def test_the_device_at_hand_keeps_its_own_figures(self) -> None:
        found = device_at_hand(Hardware("NVIDIA A100-SXM4-40GB", 42_000_000_000, (8, 0), taken=500_000_000))
        assert found.memory == 42_000_000_000
        assert found.bandwidth == DEVICES["a100-40"].bandwidth
        assert device_at_hand(Hardware("Tesla T4", 15_000_000_000, (7, 5))).teraflops_low == 65

    def test_unknown_devices_are_named(self) -> None:
        with pytest.raises(UserError, match="known kinds are t4"):
            find_device("tpu")


def test_a_run_that_cannot_fit_is_refused_before_step_one(
    tiny_run, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pal_dist.distributed.engine import Engine
    from pal_dist.training.trainer import Trainer

    monkeypatch.setattr(Engine, "hardware", lambda _: Hardware("cpu", 300_000))
    run = tiny_run()
    with pytest.raises(DoesNotFitError, match=r"does not fit: it needs .* MiB .*--memory off tries it all the same"):
        set_up(run, {}, cache_dir=cache_dir)
    assert not Path(str(run.train.output_dir)).exists()
    trainer = Trainer(set_up(tiny_run(memory="off"), {}, cache_dir=cache_dir))
    trainer.run.report.close()
    trainer.engine.close()


def test_a_tight_plan_is_proved_and_written_down(tiny_run, cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device with little room to spare: the worst batches are run, and what they showed lies beside the run."""
    from pal_dist.distributed.engine import Engine

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
    again.report.close()
    again.engine.close()
