"""Whole runs: what is written, resuming, answering, two processes through the real launcher."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pal_dist.cli import main
from pal_dist.commands.train import train
from pal_dist.core.errors import UserError
from pal_dist.data.batch import pack_batch
from pal_dist.training.setup import set_up
from pal_dist.training.trainer import Trainer
from tests.support.paths import ROOT
from tests.support.ranks import run_ranks
from tests.support.training import train_and_read


class TestOneRun:
    @pytest.fixture(scope="class")
    def finished(self, tiny_bert, small_data, cache_dir, tmp_path_factory) -> Path:
        """A run through the command line, read by the tests below."""
        folder = tmp_path_factory.mktemp("runs") / "run"
        main(
            [
                str(part)
                for part in (
                    "train",
                    "--data_dir",
                    small_data,
                    "--model",
                    tiny_bert,
                    "--cache_dir",
                    cache_dir,
                    "--output_dir",
                    folder,
                    "--max_length",
                    48,
                    "--max_steps",
                    12,
                    "--batch_size",
                    8,
                    "--adapter_hidden",
                    12,
                    "--adapter_heads",
                    2,
                    "--evaluate_every",
                    5,
                    "--log_every",
                    4,
                    "--keep_best",
                    "each",
                    "--learning_rate",
                    "1e-3",
                )
            ]
        )
        return folder

    def test_results(self, finished: Path) -> None:
        results = json.loads((finished / "results.json").read_text())
        assert {
            "dev",
            "examples_per_second",
            "useful_tokens_per_second",
            "useful_token_share",
            "steps",
            "seconds",
            "parameters",
        } <= results.keys()
        assert results["steps"] == 12
        assert {task: set(metrics) for task, metrics in results["dev"].items()} == {
            "sst": {"accuracy", "f1_macro", "matthews"},
            "para": {"accuracy", "f1", "matthews"},
            "sts": {"pearson", "spearman"},
        }
        assert 0.5 < results["useful_token_share"] <= 1
        assert results["examples_per_second"] == pytest.approx(results["examples"] / results["seconds"])

    def test_logs(self, finished: Path) -> None:
        entries = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
        assert [entry["step"] for entry in entries if "loss" in entry] == [4, 5, 8, 10, 12]
        assert [entry["step"] for entry in entries if "dev" in entry] == [5, 10, 12]
        events = EventAccumulator(str(finished / "tensorboard"))
        events.Reload()
        scalars, images = set(events.Tags()["scalars"]), set(events.Tags()["images"])
        assert {
            "loss/sst",
            "train/learning_rate",
            "train/gradient_norm",
            "dev_pearson/sts",
            "train/examples_per_second",
            "train/useful_token_share",
            "train/memory_gib",
            "dev_mean",
        } <= scalars
        assert images == {"confusion/sst", "confusion/para"}

    def test_config_is_beside_the_run(self, finished: Path) -> None:
        config = json.loads((finished / "config.json").read_text())
        assert config["values"]["batch"]["batch_size"] == 8
        assert config["origins"]["batch_size"] == "command line"

    def test_saved_models(self, finished: Path) -> None:
        names = {str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file()}
        for folder in ("model", "best/sst", "best/para", "best/sts"):
            assert {
                f"{folder}/config.json",
                f"{folder}/model.safetensors",
                f"{folder}/README.md",
                f"{folder}/vocab.txt",
                f"{folder}/tasks/sst.safetensors",
            } <= names
        assert not [name for name in names if "draft" in name]
        assert len(list((finished / "checkpoints").iterdir())) == 2

    def test_evaluate_gives_the_reported_scores(self, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
        main(["evaluate", str(finished), "--tokens_per_micro_batch", "100"])
        scores = json.loads(capsys.readouterr().out.splitlines()[-1])["dev"]
        expected = json.loads((finished / "results.json").read_text())["dev"]
        for task in expected:
            assert scores[task] == pytest.approx(expected[task], abs=1e-6, nan_ok=True)

    def test_prediction_files(self, finished: Path, small_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
        main(["predict", str(finished), "--split", "dev"])
        capsys.readouterr()
        rows = [line.split("\t") for line in (small_data / "ids-sst-dev.csv").read_text().splitlines()[1:]]
        lines = (finished / "predictions" / "sst-dev-output.csv").read_text().split("\n")
        assert lines[0] == "id \t Predicted_Sentiment "
        assert lines[-1] == ""
        cells = [line.split(" , ") for line in lines[1:-1]]
        assert [cell[0] for cell in cells] == [row[1] for row in rows]
        assert all(cell[1] in ("0 ", "1 ", "2 ", "3 ", "4 ") for cell in cells)
        para = (finished / "predictions" / "para-dev-output.csv").read_text().split("\n")
        assert all(line.endswith((" , 0.0 ", " , 1.0 ")) for line in para[1:-1])
        records = [json.loads(line) for line in (finished / "predictions" / "sst-dev.jsonl").read_text().splitlines()]
        assert [record["id"] for record in records] == [row[1] for row in rows]
        assert [record["prediction"] for record in records] == [int(cell[1]) for cell in cells]
        accuracy = np.mean([float(row[3]) == record["prediction"] for row, record in zip(rows, records, strict=True)])
        assert accuracy == json.loads((finished / "results.json").read_text())["dev"]["sst"]["accuracy"]

    def test_a_person_asks(self, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
        main(["predict", str(finished), "--task", "sst", "--text", "the film, is 'superb', 3 times"])
        found = json.loads(capsys.readouterr().out)
        assert found["prediction"] == int(np.argmax(found["probabilities"]))
        main(["predict", str(finished / "model"), "--task", "sts", "--text", "a man .", "--text_b", "a boy ."])
        assert 0 <= json.loads(capsys.readouterr().out)["prediction"] <= 5

    def test_tasks_without_the_file_are_told_and_left_out(
        self, finished: Path, small_data: Path, capsys, tmp_path
    ) -> None:
        rows = (small_data / "sts-dev.csv").read_text().splitlines()
        (tmp_path / "sts-test-student.csv").write_text("\n".join(row.rsplit("\t", 1)[0] for row in rows) + "\n")
        main(["predict", str(finished), "--data_dir", str(tmp_path), "--predictions_dir", str(tmp_path / "out")])
        said = capsys.readouterr()
        assert "warning: para is left out: no file quora-test-student.csv" in said.err
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["sts-test-output.csv", "sts-test.jsonl"]
        assert len((tmp_path / "out" / "sts-test.jsonl").read_text().splitlines()) == len(rows) - 1
        with pytest.raises(SystemExit):
            main(["predict", str(finished), "--data_dir", str(tmp_path), "--tasks", "para"])
        assert "there is no such file; task `para` reads it" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("extra", "says"),
        [
            (["--task", "sts", "--text", "a"], "reads a pair: give --text_b"),
            (["--task", "sst", "--text", "a", "--text_b", "b"], "reads one text: drop --text_b"),
            (["--task", "sst", "--text", "  "], "--text is empty"),
            (["--task", "sst", "--text", "word " * 20_000], "the text has 100,000 characters"),
            (["--task", "cola", "--text", "a"], "this model has no task `cola`"),
            (["--split", "nonsense"], "none of the tasks has a `nonsense` file"),
        ],
    )
    def test_wrong_questions(
        self, extra: list[str], says: str, finished: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as caught:
            main(["predict", str(finished), *extra])
        assert caught.value.code == 2
        assert says in capsys.readouterr().err

    def test_starting_it_again_changes_nothing(self, finished: Path, tiny_bert, small_data, cache_dir, capsys) -> None:
        before = load_file(finished / "model" / "model.safetensors")
        run = json.loads((finished / "config.json").read_text())["values"]
        flags = {name: value for section in run.values() for name, value in section.items() if value is not None}
        flags["tasks"] = ",".join(flags["tasks"])
        main(["train", *(str(part) for name, value in flags.items() for part in (f"--{name}", value))])
        assert "resumed after step 12" in capsys.readouterr().err
        after = load_file(finished / "model" / "model.safetensors")
        assert all(torch.equal(before[name], after[name]) for name in before)


class TestResume:
    """Law 3: killed at any step and resumed, a run ends bit-identical to the one that was left alone."""

    @pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
    @pytest.mark.parametrize("stop_after", [1, 5, 8])
    def test_bit_identical(self, stop_after: int, optimizer: str, tiny_run, cache_dir: Path, tmp_path: Path) -> None:
        flags = {"dropout": 0.1, "max_steps": 10, "evaluate_every": "3", "optimizer": optimizer, "sampling": "random"}
        alone = tiny_run(**flags, output_dir=tmp_path / "alone")
        killed = tiny_run(**flags, output_dir=tmp_path / "killed")
        (expected,) = run_ranks(train_and_read, alone, cache_dir, ranks=1)
        assert run_ranks(train_and_read, killed, cache_dir, stop_after, ranks=1) == [None]
        (found,) = run_ranks(train_and_read, killed, cache_dir, ranks=1)
        assert expected.keys() == found.keys()
        assert [name for name in expected if not np.array_equal(expected[name], found[name])] == []
        logs = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("alone", "killed")]
        dev = [[entry for entry in map(json.loads, log) if "dev" in entry] for log in logs]
        assert [entry["step"] for entry in dev[0]] == [3, 6, 9, 10]
        assert json.dumps(dev[0]) == json.dumps(dev[1])

    def test_two_ranks(self, tiny_run, cache_dir: Path, tmp_path: Path) -> None:
        flags = {"dropout": 0.1, "max_steps": 6, "evaluate_every": "2"}
        expected = run_ranks(train_and_read, tiny_run(**flags, output_dir=tmp_path / "alone"), cache_dir)
        killed = tiny_run(**flags, output_dir=tmp_path / "killed")
        run_ranks(train_and_read, killed, cache_dir, 3)
        found = run_ranks(train_and_read, killed, cache_dir)
        for rank in range(2):
            assert all(np.array_equal(expected[0][name], found[rank][name]) for name in expected[0])

    def test_other_number_of_ranks(self, tiny_run, cache_dir: Path, tmp_path: Path) -> None:
        flags = {"max_steps": 6, "evaluate_every": "3"}
        (expected,) = run_ranks(train_and_read, tiny_run(**flags, output_dir=tmp_path / "alone"), cache_dir, ranks=1)
        killed = tiny_run(**flags, output_dir=tmp_path / "killed")
        run_ranks(train_and_read, killed, cache_dir, 4, ranks=1)
        found, _ = run_ranks(train_and_read, killed, cache_dir, ranks=2)
        for name, value in expected.items():
            if "key.bias" in name:  # softmax does not see it: its gradient is rounding noise, which Adam enlarges
                continue
            np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-5, err_msg=name)


def one_task_steps(run: Any, cache_dir: Path) -> list[str]:
    """Names of parameters or moments that moved in a step that did not serve their task."""
    trainer = Trainer(set_up(run, {}, cache_dir=cache_dir))
    engine, wrong = trainer.engine, []

    def snapshot(task: str) -> dict[str, torch.Tensor]:
        values = {f"{task}.{n}": p for n, p in engine.model.task_parts()[task].named_parameters()}
        moments = {
            f"{name}/{key}": value
            for name, p in values.items()
            for key, value in engine.optimizer.state.get(p, {}).items()
        }
        return {name: value.detach().clone() for name, value in {**values, **moments}.items()}

    for served in trainer.run.schedule.steps(0, 9):
        idle = [task.name for index, task in enumerate(trainer.run.tasks) if index != served[0][0]]
        before = {task: snapshot(task) for task in idle}
        trainer.step(served)
        trainer.state.step += 1
        for task in idle:
            after = snapshot(task)
            wrong += [name for name in after if not torch.equal(after[name], before[task][name])]
    trainer.run.report.close()
    engine.close()
    return wrong


@pytest.mark.parametrize("ranks", [1, 2])
def test_tasks_that_a_step_does_not_serve_stay_bit_unchanged(ranks: int, tiny_run, cache_dir: Path) -> None:
    """Law 2, with momentum built up and weight decay on."""
    run = tiny_run(step_tasks="one", weight_decay=0.1, max_steps=9)
    assert run_ranks(one_task_steps, run, cache_dir, ranks=ranks) == [[]] * ranks


def test_patience_stops_the_run(tiny_run, cache_dir: Path) -> None:
    run = tiny_run(max_steps=40, evaluate_every="2", patience=2, learning_rate=1e-9)
    results = train(run, {}, cache_dir=cache_dir)
    assert results["steps"] == results["best_step"] + 4


def test_learning_more_than_chance(tiny_run, corpus_dir: Path, cache_dir: Path) -> None:
    """The synthetic corpus has signal that even a random tiny BERT finds: losses fall, sst is far above one in five."""
    run = tiny_run(
        data_dir=corpus_dir, max_steps=120, batch_size=32, learning_rate=3e-3, evaluate_every="none", tasks="sst"
    )
    results = train(run, {}, cache_dir=cache_dir)
    assert results["dev"]["sst"]["accuracy"] > 0.5


def test_bf16_follows_fp32(tiny_run, cache_dir: Path, tmp_path: Path) -> None:
    """Mixed precision: products in bf16, parameters and losses in float32, nearly the same losses."""
    losses = {}
    for precision in ("fp32", "bf16"):
        run = tiny_run(precision=precision, output_dir=tmp_path / precision)
        trainer = Trainer(set_up(run, {}, cache_dir=cache_dir))
        trainer.fit()
        trainer.run.report.close()
        trainer.engine.close()
        assert {value.dtype for value in trainer.engine.model.parameters()} == {torch.float32}
        rows = next(iter(trainer.run.corpora.train.values())).rows(np.arange(4))
        (logits,) = trainer.engine.forward(trainer.engine.to_device(pack_batch([("sst", rows)])))
        assert logits.dtype == torch.float32
        lines = (tmp_path / precision / "metrics.jsonl").read_text().splitlines()
        losses[precision] = [entry["loss"]["sst"] for entry in map(json.loads, lines) if "loss" in entry]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.03)
    assert losses["bf16"] != losses["fp32"]


def test_frozen_encoder_stays(tiny_run, cache_dir: Path, tiny_bert: Path) -> None:
    run = tiny_run(mode="pretrain", learning_rate=None)
    train(run, {}, cache_dir=cache_dir)
    saved = load_file(Path(run.train.output_dir) / "model" / "model.safetensors")
    for name, value in load_file(tiny_bert / "model.safetensors").items():
        assert torch.equal(saved[f"bert.{name}"], value)
    assert not (Path(run.train.output_dir) / "checkpoints").is_file()


def test_going_on_from_a_saved_model(tiny_run, cache_dir: Path, tmp_path: Path) -> None:
    """Pretrain adapters and heads, then fine-tune everything: the second run starts where the first ended."""
    first = tiny_run(mode="pretrain", output_dir=tmp_path / "first")
    train(first, {}, cache_dir=cache_dir)
    second = tiny_run(model=tmp_path / "first" / "model", output_dir=tmp_path / "second")
    trainer = Trainer(set_up(second, {}, cache_dir=cache_dir))
    saved = load_file(tmp_path / "first" / "model" / "model.safetensors")
    assert all(torch.equal(value, saved[name]) for name, value in trainer.engine.model.state_dict().items())
    trainer.run.report.close()
    trainer.engine.close()


def test_a_run_without_dev_files(tiny_run, cache_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_text("".join(json.dumps({"t": f"a film {i}", "y": i % 2}) + "\n" for i in range(20)))
    (tmp_path / "own.yaml").write_text(
        "name: own\nfiles: {train: own.jsonl}\ntext_a: t\nlabel: y\nobjective: binary\nmetric: accuracy\n"
    )
    results = train(tiny_run(tasks=str(tmp_path / "own.yaml")), {}, cache_dir=cache_dir)
    assert results["dev"] == {}
    assert results["steps"] == 6


def test_tensors_that_are_not_finite_stop_the_run(
    tiny_run, cache_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tiny_run(learning_rate=1e30, max_gradient_norm=0, max_steps=30)
    with pytest.raises(UserError, match="the loss is no longer finite"):
        train(run, {}, cache_dir=cache_dir)


@pytest.mark.long
def test_two_processes_through_the_launcher(tiny_bert, small_data, cache_dir, tmp_path: Path) -> None:
    """The README's own command, and the same scores and parameters as one process."""
    flags = [
        str(part)
        for part in (
            "--data_dir",
            small_data,
            "--model",
            tiny_bert,
            "--cache_dir",
            cache_dir,
            "--max_length",
            48,
            "--max_steps",
            4,
            "--batch_size",
            8,
            "--adapter_hidden",
            12,
            "--adapter_heads",
            2,
            "--dropout",
            0,
        )
    ]
    launch = [
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(ROOT / "accelerate_configs" / "cpu_2.yaml"),
        "--num_processes",
        "2",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}
    command = [sys.executable, *launch, "-m", "pal_dist", "train", *flags, "--output_dir", str(tmp_path / "two")]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=200)
    assert ended.returncode == 0, ended.stderr
    assert "on 2 x cpu" in ended.stderr
    main(["train", *flags, "--output_dir", str(tmp_path / "one")])
    one, two = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two"))
    assert two["ranks"] == 2
    assert two["examples"] == one["examples"]
    for task in one["dev"]:
        assert two["dev"][task] == pytest.approx(one["dev"][task], abs=1e-4, nan_ok=True)
    saved = [load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two")]
    for name, value in saved[0].items():
        torch.testing.assert_close(saved[1][name], value, rtol=0, atol=1e-4)


def test_useful_share_on_the_real_data(shared: Path, minilm: Path, tmp_path: Path) -> None:
    """At least 99.5 % of the tokens that go through the model are those of texts, under every sampling."""
    from pal_dist.config.resolve import resolve

    flags = {
        "data_dir": str(shared / "data"),
        "model": str(minilm),
        "cache_dir": str(tmp_path),
        "epochs": "1",
        "output_dir": str(tmp_path / "run"),
    }
    run = resolve(flags)[0]
    trainer = Trainer(set_up(run, {}, cache_dir=tmp_path))
    sampling = trainer.run.schedule.sampling
    for kind in ("round_robin", "random", "proportional", "sqrt", "annealed"):
        for step_tasks in ("all", "one"):
            trainer.run.schedule.sampling = replace(sampling, kind=kind, step_tasks=step_tasks)
            trainer.run.schedule._order.cache_clear()
            computed = useful = 0
            for served in trainer.run.schedule.steps(0, 100):
                useful += sum(int(trainer.run.schedule.lengths[task][rows].sum()) for task, rows in served)
                batches = (trainer.run.batch(micro) for micro in trainer.run.micro_batches(served))
                computed += sum(batch.input_ids_T.numel() for batch in batches)
            assert useful / computed >= 0.995, (kind, step_tasks)
    trainer.run.report.close()
    trainer.engine.close()
