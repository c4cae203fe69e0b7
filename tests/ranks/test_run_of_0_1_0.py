"""A run folder and a saved model that version 0.1.0 wrote are evaluated, asked and resumed by today's program."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from pal_dist.cli import main
from pal_dist.commands.train import train
from pal_dist.config.resolve import run_from_dict
from tests.support.old_run import copy_old_run


@pytest.fixture
def old_run(tmp_path: Path) -> Path:
    return copy_old_run(tmp_path)


def test_evaluate_gives_the_scores_that_it_reported(old_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["evaluate", str(old_run)])
    scores = json.loads(capsys.readouterr().out.splitlines()[-1])["dev"]
    expected = json.loads((old_run / "results.json").read_text())["dev"]
    for task, metrics in expected.items():
        assert scores[task] == pytest.approx(metrics, abs=1e-6)


def test_its_model_is_asked(old_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["predict", str(old_run / "model"), "--task", "sst", "--text", "a film that is superb"])
    assert json.loads(capsys.readouterr().out)["prediction"] in range(5)


def test_resume(old_run: Path) -> None:
    """From its fourth step, as if it had been killed there: the last two give what they gave then."""
    ended = {name: (old_run / name).read_text() for name in ("metrics.jsonl", "results.json")}
    before = load_file(old_run / "checkpoints" / "step-00000006" / "part-00001-of-00001.safetensors")
    shutil.rmtree(old_run / "checkpoints" / "step-00000006")
    (old_run / "results.json").unlink()
    config = run_from_dict(json.loads((old_run / "config.json").read_text())["values"])
    results = train(config, {}, cache_dir=old_run.parent / "cache")
    assert results["steps"] == 6
    expected = json.loads(ended["results.json"])
    assert results["best_step"] == expected["best_step"]
    assert results["dev_mean"] == pytest.approx(expected["dev_mean"], abs=1e-6)
    after = load_file(old_run / "checkpoints" / "step-00000006" / "part-00001-of-00001.safetensors")
    assert after.keys() == before.keys()
    for name, value in before.items():
        # Another processor may round the last digits of products otherwise; Adam enlarges that where a gradient is 0.
        tolerance = 1e-2 if "key.bias" in name else 1e-5
        assert (after[name] - value).abs().max() <= tolerance * max(1.0, float(value.abs().max())), name
    entries = [json.loads(line) for line in (old_run / "metrics.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries if "dev" in entry] == [2, 4, 6]
    assert all(math.isfinite(entry["memory_gib"]) for entry in entries if "loss" in entry), "old entries as today's"
