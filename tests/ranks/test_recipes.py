"""Law 8 for recipes: each runs two real steps; and what the settings they need do."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pal_dist.cli import main
from pal_dist.commands.train import train
from pal_dist.config.recipes import read_recipe, recipe_names
from pal_dist.config.resolve import resolve
from pal_dist.config.schema import RunConfig
from pal_dist.core.errors import UserError
from pal_dist.models.adapters import Adapter
from pal_dist.tasks.objectives import Classes, Score
from pal_dist.tasks.registry import TASKS, Task
from pal_dist.training.setup import set_up
from pal_dist.training.trainer import Trainer
from tests.support.ranks import run_ranks
from tests.support.training import train_and_read


def _rows(task: Task, count: int) -> str:
    """A small file of any task in its own layout, from a fixed draw of words."""
    draw = np.random.default_rng(0)
    words = ["film", "man", "plays", "a", "good", "bad", "the", "dog", "runs", "music"]
    text = lambda: " ".join(draw.choice(words, 7))  # noqa: E731
    objective, lines = task.objective, []
    for number in range(count):
        label: Any = number % (objective.count if isinstance(objective, Classes) else 2)
        if isinstance(objective, Score):
            label = round(5 * draw.random(), 2)
        elif getattr(objective, "names", ()):
            label = objective.names[label]
        cells = {task.text_a: text(), task.text_b: text(), task.label: str(label), task.id: str(number)}
        if isinstance(task.text_a, int):
            lines.append("\t".join(cells.get(column, "x") for column in range(4)))
        else:
            named = {column: cell for column, cell in cells.items() if column is not None}
            lines = lines or ["\t".join(named)]
            lines.append("\t".join(named.values()))
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def all_data(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small files of every task that a recipe names."""
    folder = tmp_path_factory.mktemp("all_data")
    for name in {task for recipe in recipe_names() for task in resolve({}, recipe=recipe)[0].data.tasks}:
        for split in ("train", "dev"):
            file = TASKS[name].file(split)
            assert file is not None
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            small = small_data / file
            (folder / file).write_text(small.read_text() if small.is_file() else _rows(TASKS[name], 40))
    return folder


def forced(name: str, tiny_bert: Path, all_data: Path, cache_dir: Path, folder: Path) -> tuple[RunConfig, dict]:
    """The recipe with what a BERT of width 24 and 64 positions forces, and two steps; nothing else."""
    recipe_run, kind = resolve({}, recipe=name)[0], Adapter.registry[read_recipe(name).settings["adapter"]]
    flags = {
        "model": tiny_bert,
        "data_dir": all_data,
        "cache_dir": cache_dir,
        "output_dir": folder,
        "max_steps": 2,
        "max_length": min(recipe_run.data.max_length, 64),
    }
    if recipe_run.model.adapter_hidden:
        flags |= {"adapter_hidden": 12} | ({"adapter_heads": 2} if kind.has_heads else {})
    return resolve({key: str(value) for key, value in flags.items()}, recipe=name)


@pytest.mark.parametrize("name", recipe_names())
def test_two_real_steps(name: str, tiny_bert: Path, all_data: Path, cache_dir: Path, tmp_path: Path) -> None:
    run, origins = forced(name, tiny_bert, all_data, cache_dir, tmp_path / "run")
    results = train(run, origins, cache_dir=cache_dir)
    assert results["steps"] == 2
    assert results["dev"].keys() == set(run.data.tasks)
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    assert written["origins"]["batch_size"] == f"recipe {name}"
    assert written["origins"]["max_steps"] == "command line"
    saved = load_file(tmp_path / "run" / "model" / "model.safetensors")
    before = load_file(tiny_bert / "model.safetensors")
    moved = any(not torch.equal(saved[f"bert.{key}"], value) for key, value in before.items())
    assert moved == (run.train.mode == "finetune")


def test_the_joint_recipe_goes_on_from_the_merged_model(
    tiny_bert: Path, all_data: Path, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two commands of the recipes, one after the other: the path that the second names is what the first leaves."""
    monkeypatch.chdir(tmp_path)
    run, origins = forced("individual_pretrain", tiny_bert, all_data, cache_dir, Path("runs/individual_pretrain"))
    train(run, origins, cache_dir=cache_dir)
    second, _ = forced("joint_finetune", tiny_bert, all_data, cache_dir, Path("runs/joint_finetune"))
    model = resolve({}, recipe="joint_finetune")[0].model.model
    trainer = Trainer(set_up(replace(second, model=replace(second.model, model=model)), {}, cache_dir=cache_dir))
    saved = load_file(tmp_path / "runs" / "individual_pretrain" / "model" / "model.safetensors")
    assert all(torch.equal(value, saved[name]) for name, value in trainer.engine.model.state_dict().items())
    trainer.run.report.close()
    trainer.engine.close()
    trainer.engine.release_run_folder()


def test_a_constant_rate_is_what_a_run_has(tiny_run: Callable[..., RunConfig], cache_dir: Path) -> None:
    run = tiny_run(schedule="constant", warmup=0, learning_rate=3e-4, log_every=1)
    train(run, {}, cache_dir=cache_dir)
    log = (Path(str(run.train.output_dir)) / "metrics.jsonl").read_text().splitlines()
    assert [entry["learning_rate"] for entry in map(json.loads, log) if "loss" in entry] == [3e-4] * 6


def test_a_run_counts_its_epochs_so(tiny_run: Callable[..., RunConfig], cache_dir: Path) -> None:
    run = tiny_run(steps_per_epoch=2, epochs=3, max_steps=None, sampling="annealed", step_tasks="one")
    assert train(run, {}, cache_dir=cache_dir)["steps"] == 6
    log = (Path(str(run.train.output_dir)) / "metrics.jsonl").read_text().splitlines()
    assert [entry["step"] for entry in map(json.loads, log) if "dev" in entry] == [2, 4, 6]


class TestParts:
    """`keep_best: parts`: one model whose tasks are each as they were at their own best."""

    FLAGS = {"mode": "pretrain", "max_steps": 12, "evaluate_every": "2", "dropout": 0.1, "learning_rate": 3e-2}  # noqa: RUF012

    def test_each_part_is_that_of_the_tasks_own_best(
        self, tiny_run: Callable[..., RunConfig], cache_dir: Path, tmp_path: Path
    ) -> None:
        each = train(tiny_run(**self.FLAGS, keep_best="each", output_dir=tmp_path / "each"), {}, cache_dir=cache_dir)
        parts = train(tiny_run(**self.FLAGS, keep_best="parts", output_dir=tmp_path / "parts"), {}, cache_dir=cache_dir)
        assert parts["best_each"] == each["best_each"]
        assert len({best["step"] for best in parts["best_each"].values()}) > 1, "else this test shows nothing"
        whole = load_file(tmp_path / "parts" / "model" / "model.safetensors")
        for task, best in parts["best_each"].items():
            wanted = load_file(tmp_path / "each" / "best" / task / "tasks" / f"{task}.safetensors")
            part = load_file(tmp_path / "parts" / "model" / "tasks" / f"{task}.safetensors")
            assert part.keys() == wanted.keys()
            assert all(torch.equal(part[name], wanted[name]) for name in wanted)
            assert all(torch.equal(whole[name], wanted[name]) for name in wanted)
            headline = next(iter(parts["dev"][task].values()))
            assert headline == best["value"]
        assert parts["dev_mean"] == pytest.approx(np.mean([best["value"] for best in parts["best_each"].values()]))
        assert parts["dev_mean"] >= each["dev_mean"]

    def test_the_kept_model_scores_what_is_reported(
        self, tiny_run: Callable[..., RunConfig], cache_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        results = train(tiny_run(**self.FLAGS, keep_best="parts", output_dir=tmp_path / "run"), {}, cache_dir=cache_dir)
        errors = capsys.readouterr().err
        assert "each task's part at its own best: sst of step" in errors
        main(["evaluate", str(tmp_path / "run")])
        scores = json.loads(capsys.readouterr().out.splitlines()[-1])["dev"]
        for task in results["dev"]:
            assert scores[task] == pytest.approx(results["dev"][task], abs=1e-6)

    @pytest.mark.parametrize(("stop_after", "ranks"), [(3, 1), (5, 2), (9, 1)])
    def test_killed_and_resumed(
        self, stop_after: int, ranks: int, tiny_run: Callable[..., RunConfig], cache_dir: Path, tmp_path: Path
    ) -> None:
        """Law 3 for the kept parts: bit-identical to those of a run left alone."""
        runs = {name: tiny_run(**self.FLAGS, keep_best="parts", output_dir=tmp_path / name) for name in ("a", "k")}
        run_ranks(train_and_read, runs["a"], cache_dir, ranks=ranks)
        assert run_ranks(train_and_read, runs["k"], cache_dir, stop_after, ranks=ranks) == [None] * ranks
        run_ranks(train_and_read, runs["k"], cache_dir, ranks=ranks)
        alone, killed = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("a", "k"))
        assert alone.keys() == killed.keys()
        assert [name for name in alone if not torch.equal(alone[name], killed[name])] == []

    def test_a_lost_part_is_told(self, tiny_run: Callable[..., RunConfig], cache_dir: Path, tmp_path: Path) -> None:
        run = tiny_run(**self.FLAGS, keep_best="parts", output_dir=tmp_path / "run")
        run_ranks(train_and_read, run, cache_dir, 3, ranks=1)
        for file in (tmp_path / "run" / "model" / "tasks").iterdir():
            file.unlink()
        (error,) = run_ranks(train_and_read, run, cache_dir, ranks=1)
        assert isinstance(error, UserError)
        assert "expected the part of" in str(error)
