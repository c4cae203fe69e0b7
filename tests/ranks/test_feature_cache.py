"""A frozen encoder's features: the run on them is the run without them, and the encoder rests."""

from __future__ import annotations

import json
import os
import shutil
import signal
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import pal_dist.training.feature_cache
import pal_dist.training.setup
from pal_dist.cli import main
from pal_dist.config.schema import RunConfig
from pal_dist.core.errors import UserError
from pal_dist.data.batch import pack_batch
from pal_dist.models.encoder import Encoder
from pal_dist.models.multi_task import build_model
from pal_dist.training.feature_cache import FeatureCorpus
from pal_dist.training.feature_file import find_damage
from pal_dist.training.setup import set_up
from pal_dist.training.trainer import Trainer
from tests.support.ranks import Died, in_parallel, run_ranks
from tests.support.tiny_run import make_tiny_run
from tests.support.training import assert_same, distances, fit, fit_until_killed

FROZEN = {"mode": "pretrain", "adapter": "none", "max_steps": 9, "learning_rate": 1e-2, "max_gradient_norm": 0.5}


@pytest.fixture
def cold(tmp_path: Path) -> Path:
    """A cache that holds nothing yet."""
    return tmp_path / "cold"


@pytest.fixture
def tiny_run(tiny_bert: Path, small_data: Path, cold: Path, tmp_path: Path) -> Any:
    return partial(make_tiny_run, tiny_bert, small_data, cold, tmp_path)


def ready(run: RunConfig, cache_dir: Path) -> Trainer:
    """Assembled and closed: what is on disk and in the trainer can be looked at."""
    trainer = Trainer(set_up(run, {}, cache_dir=cache_dir))
    trainer.run.report.close()
    trainer.engine.close()
    return trainer


def feature_files(folder: Path) -> set[Path]:
    return set(folder.glob("*-features-*.npy"))


def fit_in_float64(run: RunConfig, cache_dir: Path) -> tuple[dict[str, np.ndarray], Any]:
    """Train with a model that is in float64 from the start, features included."""
    pal_dist.training.setup.build_model = lambda *given: build_model(*given).double()  # type: ignore[attr-defined]
    trainer = Trainer(set_up(run, {}, cache_dir=cache_dir))
    assert isinstance(next(iter(trainer.run.corpora.train.values())), FeatureCorpus) == (run.train.features == "auto")
    state = trainer.fit()
    trainer.run.report.close()
    trainer.engine.close()
    return {name: value.numpy() for name, value in trainer.engine.full_state_dict().items()}, (
        state.examples,
        state.best_metrics,
    )


@pytest.mark.parametrize("pooling", ["pooler", "first", "mean"])
def test_the_same_run_as_without(pooling: str, tiny_run, cold: Path, tmp_path: Path) -> None:
    """In float64 to its last digits, on one rank and two; the uncached run is cut fine, the cached one not at all."""
    flags = {**FROZEN, "pooling": pooling, "head_layers": 1, "evaluate_every": 4}
    plain = tiny_run(**flags, features="off", tokens_per_micro_batch=64, output_dir=tmp_path / "plain")
    (reference,) = run_ranks(fit_in_float64, plain, cold, ranks=1)
    assert not isinstance(reference, Exception), reference
    assert feature_files(cold) == set()
    for ranks in (1, 2):
        run = tiny_run(**flags, output_dir=tmp_path / str(ranks))
        for answer in run_ranks(fit_in_float64, run, cold, ranks=ranks):
            assert not isinstance(answer, Exception), answer
            assert_same(answer[0], reference[0])
            assert answer[1][0] == reference[1][0]
            for task, metrics in reference[1][1].items():
                assert answer[1][1][task] == pytest.approx(metrics, abs=1e-9, nan_ok=True)
    assert len(feature_files(cold)) == 6


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["ddp", "zero1", "zero2", "zero3", "fsdp2"])
def test_every_strategy(strategy: str, tiny_run, cold: Path, tmp_path: Path) -> None:
    flags = {**FROZEN}
    reference = fit(tiny_run(**flags, features="off", output_dir=tmp_path / "plain"), cold)
    for answer in run_ranks(fit, tiny_run(**flags, strategy=strategy, output_dir=tmp_path / "cached"), cold):
        assert not isinstance(answer, Exception), answer
        whole, worst = distances(answer[0], reference[0])
        assert whole < 1e-6
        assert worst < 1e-5
        assert answer[1]["examples"] == reference[1]["examples"]
        for task, metrics in reference[1]["metrics"].items():
            assert answer[1]["metrics"][task] == pytest.approx(metrics, abs=1e-3, nan_ok=True)
    assert len(feature_files(cold)) == 6
    assert not list(cold.glob("*.draft"))


def test_the_encoder_rests_and_its_dropout_too(
    tiny_run, cold: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = ready(tiny_run(**FROZEN, dropout=0.3, evaluate_every=3), cold)
    messages = "".join(capsys.readouterr())
    assert "encoder's dropout (0.3) is off, the heads' (0.3) is on" in messages
    assert "of cached features" in messages
    model: Any = trainer.engine.model.eval()
    for task, corpus in zip(trainer.run.tasks, trainer.run.corpora.train.values(), strict=True):
        rows = np.arange(5, 12)
        texts = pack_batch([(task.name, super(FeatureCorpus, corpus).rows(rows))])  # type: ignore[misc]
        cached = pack_batch([(task.name, corpus.rows(rows))])
        assert cached.pooled_RD is not None
        assert cached.tokens == texts.tokens
        with torch.no_grad():
            torch.testing.assert_close(cached.pooled_RD, model.pooled(texts), rtol=1e-5, atol=1e-6)
            assert torch.equal(cached.labels_R, texts.labels_R)
            first = model.train()(cached)[0]
            assert not torch.equal(first, model(cached)[0]), "the heads' dropout does not act"
            assert torch.equal(model.eval()(cached)[0], model(cached)[0])
    calls = []
    monkeypatch.setattr(Encoder, "forward", lambda *_, **__: calls.append(1))
    trainer = Trainer(set_up(trainer.config, {}, cache_dir=cold))
    assert [len(trainer.run.micro_batches(served)) for served in trainer.run.schedule.steps(0, 2)] == [1, 1]
    state = trainer.fit()
    trainer.run.report.close()
    trainer.engine.close()
    assert calls == []
    assert state.best_step > 0
    assert state.tokens == state.useful_tokens > state.examples


def test_only_where_nothing_below_the_heads_is_trained(tiny_run, cold: Path, tmp_path: Path) -> None:
    for number, flags in enumerate(({"adapter": "none"}, {"mode": "pretrain"}, {**FROZEN, "features": "off"})):
        run = tiny_run(**flags, output_dir=tmp_path / str(number))
        assert not isinstance(next(iter(ready(run, cold).run.corpora.train.values())), FeatureCorpus)
    assert feature_files(cold) == set()


def test_what_makes_other_features(tiny_run, tiny_bert: Path, cold: Path, tmp_path: Path) -> None:
    """Weights, cut and pooling do; dropout, heads, seed and batches do not."""
    other = tmp_path / "other_bert"
    other.mkdir()
    for path in tiny_bert.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    from safetensors.torch import load_file, save_file

    weights = load_file(other / "model.safetensors")
    weights["encoder.layer.0.output.dense.bias"][3] += 1e-3
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    cases = [
        ({}, 2),
        ({"dropout": 0.2, "head_layers": 1, "seed": 5, "batch_size": 3}, 0),
        ({"model": other}, 2),
        ({"max_length": 40}, 2),
        ({"pooling": "mean"}, 2),
    ]
    for number, (flags, new) in enumerate(cases):
        before = feature_files(cold)
        ready(tiny_run(**FROZEN, tasks="sst", output_dir=tmp_path / str(number), **flags), cold)
        assert len(feature_files(cold) - before) == new, flags


def test_a_damaged_file_is_named_and_computed_again(
    tiny_run, cold: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def start(name: str) -> np.ndarray:
        (corpus,) = ready(tiny_run(**FROZEN, tasks="sst", output_dir=tmp_path / name), cold).run.corpora.train.values()
        assert isinstance(corpus, FeatureCorpus)
        return np.array(corpus.features)

    whole = start("whole")
    path = next(path for path in feature_files(cold) if "train" in path.name)
    assert find_damage(path, whole.shape, "float32") is None
    assert "float64" in str(find_damage(path, whole.shape, "float64"))
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[200] ^= 4
    for number, damaged in enumerate((content[:-400], bytes(flipped), content[:-4], b"", b"no features at all")):
        path.write_bytes(damaged)
        capsys.readouterr()
        np.testing.assert_array_equal(start(str(number)), whole)
        assert f"warning: {path} is damaged" in "".join(capsys.readouterr())
        assert path.read_bytes() == content
    start("again")
    assert f"warning: {path}" not in "".join(capsys.readouterr())


def computed_bytes(arguments: tuple[RunConfig, Path]) -> tuple[int, int]:
    features = json.loads((ready(*arguments).run.folder / "memory.json").read_text())["features"]
    return features["computed_bytes"], features["bytes"]


def test_two_runs_at_once_share_the_work(tiny_run, cold: Path, tmp_path: Path) -> None:
    runs = [(tiny_run(**FROZEN, output_dir=tmp_path / name), cold) for name in ("a", "b")]
    (mine, size), (yours, _) = in_parallel(computed_bytes, runs)
    assert mine + yours == size == sum((43 + 24, 61 + 24, 29 + 24)) * 24 * 4
    assert len(feature_files(cold)) == 6
    assert not list(cold.glob("*.draft"))


@pytest.mark.parametrize("cache", ["kept", "lost"])
def test_killed_and_resumed(cache: str, tiny_run, cold: Path, tmp_path: Path) -> None:
    flags = {**FROZEN, "dropout": 0.2, "save_every": 2, "evaluate_every": 4}
    (clean,) = run_ranks(fit, tiny_run(**flags, output_dir=tmp_path / "clean"), cold, ranks=1)
    run = tiny_run(**flags, output_dir=tmp_path / "killed")
    (died,) = run_ranks(fit_until_killed, run, cold, "step", 5, ranks=1)
    assert isinstance(died, Died)
    assert died.code == -signal.SIGKILL
    for path in feature_files(cold) if cache == "lost" else ():
        path.unlink()
    (resumed,) = run_ranks(fit, run, cold, ranks=1)
    assert resumed[1] == clean[1]
    for name, value in clean[0].items():
        np.testing.assert_array_equal(resumed[0][name], value, err_msg=name)


def start_with_a_full_disk(run: RunConfig, cache_dir: Path) -> None:
    rank = int(os.environ["RANK"])
    free = 10 if rank == 0 else 1 << 40
    shutil.disk_usage = lambda _: SimpleNamespace(free=free)  # type: ignore[assignment,return-value]
    ready(run, cache_dir)


def test_a_full_disk_is_told_on_every_rank(tiny_run, cold: Path) -> None:
    for answer in run_ranks(start_with_a_full_disk, tiny_run(**FROZEN), cold):
        assert isinstance(answer, UserError), answer
        assert "bytes are needed and 10 are free" in str(answer)
        assert "--features off" in str(answer)
    assert not [*cold.glob("*.draft"), *feature_files(cold)]


def test_plan_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    """A budget too large for one pass over the data is halved there, so it does not decide what fits."""
    command = [
        "plan",
        "--gpu",
        "t4",
        "--model",
        "bert-base-uncased",
        "--batch_size",
        "800",
        "--max_length",
        "512",
        "--tokens_per_micro_batch",
        "400000",
        "--precision",
        "fp32",
        "--mode",
        "pretrain",
    ]

    def output(code: int, *others: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main([*command, *others])
        assert ended.value.code == code
        return capsys.readouterr().out

    assert "features: the encoder runs over the data once" in output(0, "--adapter", "none")
    assert json.loads(output(0, "--adapter", "none", "--json", "true"))["features_cached"] is True
    assert "features:" not in output(3, "--adapter", "none", "--features", "off")
    assert "features:" not in output(3, "--adapter", "pal")
