"""Law 8 for recipes: each is found, read, planned for a T4, runs two real steps; and what the settings they need do."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from pal_dist.cli import main
from pal_dist.commands.launch import check_fits, read_launch
from pal_dist.commands.plan import PlanRequest, make_plan
from pal_dist.commands.train import train
from pal_dist.config.recipes import read_recipe, recipe_names
from pal_dist.config.resolve import coerce, resolve, settings
from pal_dist.config.schema import RunConfig
from pal_dist.core.errors import UserError
from pal_dist.data.sampling import Sampling
from pal_dist.models.adapters import Adapter
from pal_dist.optim.optimizers import learning_rate_factor
from pal_dist.tasks.objectives import Classes, Score
from pal_dist.tasks.registry import TASKS, Task
from pal_dist.training.run_state import RunState
from pal_dist.training.setup import set_up
from pal_dist.training.trainer import Trainer
from tests.ranks.test_run import train_and_read
from tests.support.paths import ROOT
from tests.support.ranks import run_ranks

FOLDER = ROOT / "pal_dist" / "config" / "recipes"
EXPECTED = {
    "sst_pretrain", "sst_finetune", "cfimdb_pretrain", "cfimdb_finetune", "multitask_baseline", "pal_finetune",
    "pal_progressive", "small_batch_finetune", "individual_pretrain", "joint_finetune", "bert_multitask_learning",
    "authors_pal", "authors_low_rank", "authors_houlsby", "authors_houlsby_plus_pal", "authors_top_attention",
    "minilm_three",
}  # fmt: skip


def test_nothing_is_left_out() -> None:
    assert {path.stem for path in FOLDER.rglob("*.yaml")} == EXPECTED == set(recipe_names())
    assert {path.suffix for path in FOLDER.rglob("*") if path.is_file() and "__pycache__" not in path.parts} == {
        ".py", ".yaml",
    }  # fmt: skip


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_it_is_read_and_says_what_to_expect(name: str) -> None:
    text = (FOLDER / f"{name}.yaml").read_text()
    assert text.startswith("# ")
    recipe = read_recipe(name)
    run, origins = resolve({}, recipe=name)
    values = {field: value for section in run.to_dict().values() for field, value in section.items()}
    assert {field for field, origin in origins.items() if origin == f"recipe {name}"} == recipe.settings.keys()
    assert {field: coerce(given, settings()[field].kind) for field, given in recipe.settings.items()} == {
        field: values[field] for field in recipe.settings
    }
    assert any(f"--recipe {name} --data_dir data" in command for command in recipe.about.commands)
    for command in recipe.about.commands:  # every command's settings exist, and its recipes
        flags = re.findall(r"--(\w+)", command)
        assert set(flags) <= {*values, "recipe", "gpu"}, command
        assert set(re.findall(r"--recipe (\w+)", command)) <= EXPECTED
    assert "estimate" in recipe.about.time
    assert len(recipe.about.scores) > 20


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_it_fits_a_t4(name: str) -> None:
    """By the closed form, with every example as long as it may be; test_closed_form.py holds that to the trace."""
    flags = {"model": "bert-base-uncased"} if name == "joint_finetune" else {}
    planned = make_plan(PlanRequest(*resolve(flags, recipe=name), gpu="t4"), certify=False).planned
    assert planned.fits
    assert planned.plan.options.optimizer == "adamw"


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
    for name in {task for recipe in EXPECTED for task in resolve({}, recipe=recipe)[0].data.tasks}:
        for split in ("train", "dev"):
            file = TASKS[name].file(split)
            assert file is not None
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            known = small_data / file
            (folder / file).write_text(known.read_text() if known.is_file() else _rows(TASKS[name], 40))
    return folder


def forced(name: str, tiny_bert: Path, all_data: Path, cache_dir: Path, folder: Path) -> tuple[RunConfig, dict]:
    """The recipe with what a BERT of width 24 and 64 positions forces, and two steps; nothing else."""
    given, kind = resolve({}, recipe=name)[0], Adapter.registry[read_recipe(name).settings["adapter"]]
    flags = {"model": tiny_bert, "data_dir": all_data, "cache_dir": cache_dir, "output_dir": folder, "max_steps": 2,
             "max_length": min(given.data.max_length, 64)}  # fmt: skip
    if given.model.adapter_hidden:
        flags |= {"adapter_hidden": 12} | ({"adapter_heads": 2} if kind.has_heads else {})
    return resolve({key: str(value) for key, value in flags.items()}, recipe=name)


@pytest.mark.parametrize("name", sorted(EXPECTED))
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
    trainer.engine.release()


class TestPrecedence:
    def test_recipe_then_file_then_command_line(self, tmp_path: Path) -> None:
        file = tmp_path / "mine.yaml"
        file.write_text("batch: {batch_size: 16}\nseed: 3\n")
        run, origins = resolve({"seed": "4"}, str(file), "pal_finetune")
        assert (run.train.seed, run.batch.batch_size, run.optimizer.learning_rate) == (4, 16, 1e-5)
        named = [origins[name] for name in ("seed", "batch_size", "learning_rate", "max_steps")]
        assert named == ["command line", f"file {file}", "recipe pal_finetune", "default"]

    def test_the_verb_config_shows_it(self, capsys: pytest.CaptureFixture[str]) -> None:
        main(["config", "--recipe", "authors_pal", "--epochs", "2"])
        rows = {line.split()[1]: line for line in capsys.readouterr().out.splitlines()}
        assert re.search(r"annealed +recipe authors_pal$", rows["sampling"])
        assert re.search(r"2 +command line$", rows["epochs"])

    def test_a_path(self, tmp_path: Path) -> None:
        about = {"reproduces": "x", "commands": "y", "hardware": "z", "time": "t", "scores": "s"}
        path = tmp_path / "own.yaml"
        path.write_text(yaml.safe_dump({"about": about, "batch_size": 5}))
        run, origins = resolve({}, recipe=str(path))
        assert (run.batch.batch_size, origins["batch_size"]) == (5, f"recipe {path}")

    def test_launch_plans_the_recipe(self, cache_dir: Path) -> None:
        words = ["--on", "kubernetes", "--gpu", "t4", "--", "train", "--recipe"]
        with pytest.raises(UserError, match="did you mean `sst_finetune`"):
            check_fits(read_launch([*words, "sst_finetun"], {}), cache_dir)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"abot": 1}, r"unknown setting --abot \(recipe .*\)"),
        ({"about": {"reproduce": "x"}}, "unknown field `reproduce` of `about`: did you mean `reproduces`?"),
        ({"about": {"scores": ""}}, "`about` lacks `scores`"),
        ({"about": None}, "expected a head, `about:`"),
        ({"batch_sise": 4}, "unknown setting --batch_sise .*did you mean --batch_size"),
        ({"epochs": "many"}, "--epochs takes whole number; found 'many'"),
    ],
)
def test_mistakes_in_a_recipe(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    content = yaml.safe_load((FOLDER / "sst_finetune.yaml").read_text())
    if isinstance(change.get("about"), dict):
        change = {"about": content["about"] | change["about"]}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(content | change, sort_keys=False))
    with pytest.raises(UserError, match=says):
        resolve({}, recipe=str(tmp_path / "own.yaml"))


def test_unknown_names(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"did you mean `authors_pal`.*minilm_three"):
        read_recipe("author_pal")
    with pytest.raises(UserError, match="there is no such file"):
        read_recipe("nowhere/own.yaml")
    with pytest.raises(SystemExit) as ended:
        main(["recipes", "sst_finetun"])
    assert ended.value.code == 2
    assert "did you mean `sst_finetune`?" in capsys.readouterr().err


def test_the_verb_lists_all_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    main(["recipes"])
    text = capsys.readouterr().out
    assert set(re.findall(r"^(\w+)$", text, flags=re.MULTILINE)) == EXPECTED
    for field in ("reproduces", "commands", "hardware", "time", "scores"):
        assert len(re.findall(rf"^  {field} ", text, flags=re.MULTILINE)) >= len(EXPECTED)
    main(["recipes", "cfimdb_pretrain"])
    assert ".780" in (one := capsys.readouterr().out)
    assert "--max_length 512" in one
    assert "sst_finetune" not in one


def test_readme_names_every_recipe() -> None:
    assert {name for name in EXPECTED if name in (ROOT / "README.md").read_text()} == EXPECTED


def test_schedules() -> None:
    linear = [learning_rate_factor(step, 10, 0.2) for step in range(10)]
    constant = [learning_rate_factor(step, 10, 0.2, "constant") for step in range(10)]
    assert linear[:2] == constant[:2] == [0.5, 1.0]
    assert constant[2:] == [1.0] * 8
    assert linear[2:] == pytest.approx([1 - step / 8 for step in range(8)])
    assert learning_rate_factor(0, 10, 0.0, "constant") == 1.0


def test_a_constant_rate_is_what_a_run_has(tiny_run: Callable[..., RunConfig], cache_dir: Path) -> None:
    run = tiny_run(schedule="constant", warmup=0, learning_rate=3e-4, log_every=1)
    train(run, {}, cache_dir=cache_dir)
    log = (Path(str(run.train.output_dir)) / "metrics.jsonl").read_text().splitlines()
    assert [entry["learning_rate"] for entry in map(json.loads, log) if "loss" in entry] == [3e-4] * 6


def test_epochs_of_a_given_length() -> None:
    """The annealed exponent of the PAL authors' program: 1 in its first epoch, 0.2 in its last, by its own epochs."""
    sampling = Sampling("annealed", (900, 100), 10, "one", epochs=5, epoch_steps=7)
    assert [sampling.alpha(step) for step in (0, 6, 7, 27, 28, 34, 99)] == pytest.approx(
        [1, 1, 0.8, 0.4, 0.2, 0.2, 0.2]
    )
    assert "one epoch = 7 optimizer steps as given (70 examples)" in sampling.describe_epoch(("a", "b"))
    assert replace(sampling, epoch_steps=None).steps_per_epoch == 100


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
            found = load_file(tmp_path / "parts" / "model" / "tasks" / f"{task}.safetensors")
            assert found.keys() == wanted.keys()
            assert all(torch.equal(found[name], wanted[name]) for name in wanted)
            assert all(torch.equal(whole[name], wanted[name]) for name in wanted)
            headline = next(iter(parts["dev"][task].values()))
            assert headline == best["value"]
        assert parts["dev_mean"] == pytest.approx(np.mean([best["value"] for best in parts["best_each"].values()]))
        assert parts["dev_mean"] >= each["dev_mean"]

    def test_the_kept_model_scores_what_is_reported(
        self, tiny_run: Callable[..., RunConfig], cache_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        results = train(tiny_run(**self.FLAGS, keep_best="parts", output_dir=tmp_path / "run"), {}, cache_dir=cache_dir)
        said = capsys.readouterr().err
        assert "each task's part at its own best: sst of step" in said
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

    def test_only_where_the_encoder_is_frozen(self) -> None:
        with pytest.raises(UserError, match="--keep_best parts needs --mode pretrain: where the encoder is trained"):
            resolve({"keep_best": "parts"})

    def test_a_lost_part_is_told(self, tiny_run: Callable[..., RunConfig], cache_dir: Path, tmp_path: Path) -> None:
        run = tiny_run(**self.FLAGS, keep_best="parts", output_dir=tmp_path / "run")
        run_ranks(train_and_read, run, cache_dir, 3, ranks=1)
        for file in (tmp_path / "run" / "model" / "tasks").iterdir():
            file.unlink()
        (found,) = run_ranks(train_and_read, run, cache_dir, ranks=1)
        assert isinstance(found, UserError)
        assert "expected the part of" in str(found)


def test_a_score_that_was_no_number_is_bettered() -> None:
    state = RunState()
    assert state.update_bests({"sts": math.nan, "sst": 0.5}) == ["sts", "sst"]
    state.step = 3
    assert state.update_bests({"sts": -0.2, "sst": 0.5}) == ["sts"]
    assert state.update_bests({"sts": math.nan, "sst": math.nan}) == []
    assert state.best_each == {"sts": {"step": 3, "value": -0.2}, "sst": {"step": 0, "value": 0.5}}
    assert state.mean_of_bests() == pytest.approx(0.15)
