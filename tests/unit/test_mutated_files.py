"""Files that a person wrote, or that a run left, changed at random: read, or refused in plain words; never a traceback.

Each mutation is a function of a fixed seed, so a failure names the number with which it comes again.
"""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from copy import deepcopy
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from pal_dist.commands.listing import recipes_text
from pal_dist.commands.status import status
from pal_dist.config.recipes import FOLDER as RECIPES
from pal_dist.config.resolve import resolve, run_from_dict
from pal_dist.core.atomic_io import to_json
from pal_dist.core.errors import UserError
from pal_dist.distributed.strategy import folder_of, from_json, read_strategy
from pal_dist.monitoring import run_files
from pal_dist.monitoring.compare import build_comparison
from pal_dist.monitoring.run_records import read_config
from pal_dist.tasks.registry import TASKS, resolve_tasks, task_to_dict
from pal_dist.training.checkpoint import newest_intact
from pal_dist.training.run_state import RunState
from tests.support.written_runs import write_run

STRANGE: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**63,
    10**400,
    -(10**30),
    0.5,
    -1.5,
    1e308,
    float("inf"),
    float("nan"),
    "",
    " ",
    "x",
    "no",
    "inf",
    "1e999",
    "²",
    "a\0b",
    "\ud800",
    "../..",
    "/",
    "~",
    "x" * 3000,
    "none",
    "auto",
    [],
    {},
    [[]],
    [None],
    {"": None},
    {"a": {"b": {"c": []}}},
    [1, "a"],
    ["a", "a"],
]

ODD_TEXTS = [
    "",
    "[",
    "{",
    ": :",
    "- a\n- b",
    "5: 6\n",
    "\t",
    "a: &a [*a]\n",
    "[" * 3000,
    "!!int x",
    "---\n---\n",
    "null",
    "5",
]

ODD_LINES = ["5: 6\n", "a: 2020-13-45\n", "? [a]\n: b\n", "\tx\n", "<<: {a: 1}\n", "b: !!python/none\n", "é: ü\n", '"']


def mutated_value(content: Any, dice: random.Random) -> Any:
    """One to three changes somewhere in plain values: another value, a missing one, one more, one of another place."""
    content = deepcopy(content)
    for _ in range(dice.randint(1, 3)):
        parents = [each for each in walk(content) if isinstance(each, (dict, list)) and each]
        if not parents:
            return deepcopy(dice.choice(STRANGE))
        parent = dice.choice(parents)
        key = dice.choice(list(parent) if isinstance(parent, dict) else range(len(parent)))
        change = dice.random()
        if change < 0.65:
            parent[key] = deepcopy(dice.choice(STRANGE))
        elif change < 0.8:
            del parent[key]
        elif isinstance(parent, dict):
            parent[dice.choice(["", "a", "x" * 300, *map(str, parent)])] = deepcopy(dice.choice([*STRANGE, content]))
        else:
            parent.append(deepcopy(dice.choice([*STRANGE, content])))
    return content


def walk(content: Any) -> list[Any]:
    parts = content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()
    return [content, *(below for part in parts for below in walk(part))]


def mutated_bytes(text: str, dice: random.Random) -> bytes:
    """The file cut short, with a byte changed, a line twice or strange, or something else altogether."""
    content = bytearray(text.encode("utf-8", "surrogatepass"))
    how = dice.randrange(5)
    if how == 0 and content:
        del content[dice.randrange(len(content)) :]
    elif how == 1 and content:
        content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
    elif how == 2:
        lines = content.splitlines(keepends=True) or [content]
        lines.insert(dice.randrange(len(lines)), dice.choice([*lines, *(line.encode() for line in ODD_LINES)]))
        content = bytearray(b"".join(lines))
    elif how == 3:
        content = bytearray(dice.choice(ODD_TEXTS).encode())
    else:
        content = bytearray(dice.randbytes(60))
    return bytes(content)


def mutations(text: str, form: str, count: int, seed: int) -> Iterator[tuple[int, bytes]]:
    """(number, content) of each; half of them are still files of that form."""
    content = json.loads(text) if form == "json" else yaml.safe_load(text)
    for number in range(count):
        dice = random.Random(f"{seed} {number}")
        if number % 2:
            yield number, mutated_bytes(text, dice)
        else:
            value = mutated_value(content, dice)
            written = json.dumps(value) if form == "json" else yaml.safe_dump(value, sort_keys=False)
            yield number, written.encode("utf-8", "surrogatepass")


def only_user_errors(reader: Callable[[], object], number: int) -> bool:
    """Whether the file was read."""
    message = None
    try:
        reader()
    except UserError as error:
        message = str(error)
    except BaseException as error:
        raise AssertionError(f"mutation {number}: {type(error).__name__}: {error}") from error
    assert message is None or 10 < len(message) < 9999, f"mutation {number}"
    return message is None


def read_task(path: Path) -> None:
    (task,) = resolve_tasks([str(path)])
    to_json(task_to_dict(task))
    for text in ("1", "1.0", "x", "nan"):
        with suppress(ValueError):
            task.objective.parse(text)


def read_settings(path: Path) -> None:
    run, _ = resolve({}, str(path))
    assert resolve({name: each for part in run.to_dict().values() for name, each in part.items()})[0] == run


def read_recipe(path: Path) -> None:
    recipes_text(str(path))
    resolve({}, recipe=str(path))


def read_deepspeed(path: Path) -> None:
    strategy = from_json("mine", path)
    assert strategy.bucket >= 0
    to_json(strategy.deepspeed_config(max_norm=1.0))


TASK = yaml.safe_dump({**task_to_dict(TASKS["mnli"]), "text_b": "other", "id": "id", "quoting": True}, sort_keys=False)

CONFIG = """
data: {data_dir: builtin, tasks: [sst, para], max_length: 64}
batch: {batch_size: 8, sampling: sqrt}
optimizer: {learning_rate: 1e-4, max_gradient_norm: 0.5}
adapter_layers: [0, 1]
save_every: 15m
seed: 5
"""

WRITTEN: dict[str, tuple[str, str, Callable[[Path], object]]] = {
    "task": (TASK, "yaml", read_task),
    "config": (CONFIG, "yaml", read_settings),
    "recipe": ((RECIPES / "sst_finetune.yaml").read_text(), "yaml", read_recipe),
    "strategy": ((folder_of("accelerate_configs") / "zero2.yaml").read_text(), "yaml", lambda p: read_strategy(str(p))),
    "deepspeed": ((folder_of("ds_configs") / "zero3_offload.json").read_text(), "json", read_deepspeed),
}


@pytest.mark.parametrize("kind", WRITTEN)
def test_a_file_that_a_person_wrote(kind: str, tmp_path: Path) -> None:
    text, form, reader = WRITTEN[kind]
    path = tmp_path / f"own.{form}"
    path.write_text(text)
    reader(path)
    whole = 0
    for number, content in mutations(text, form, 60, seed=1):
        path.write_bytes(content)
        whole += only_user_errors(lambda: reader(path), number)
    assert 0 < whole < 60, "some mutations do no harm, most do"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, the first to be hurt."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        shutil.rmtree(write_run(folder / f"seed_{seed}", seed=seed) / run_files.TENSORBOARD)
    return folder


def show(runs: Path) -> None:
    """All that looks at a folder of runs; the whole run is shown, whatever is wrong with the other."""
    assert "seed_1" in status(runs, as_json=False)
    assert status(runs, as_json=True)
    assert str(runs / "seed_1") in build_comparison([runs]).markdown()
    status(runs / "seed_0", as_json=False)
    build_comparison([runs / "seed_0"]).markdown()


@pytest.mark.parametrize("name", [run_files.STATUS, run_files.RESULTS, run_files.CONFIG])
def test_a_file_that_a_run_left(name: str, runs: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(runs, tmp_path / "runs"))
    text = (folder / "seed_0" / name).read_text()
    for number, content in mutations(text, "json", 40, seed=2):
        (folder / "seed_0" / name).write_bytes(content)
        only_user_errors(lambda: show(folder), number)
        if name == run_files.CONFIG:
            only_user_errors(lambda: run_from_dict(read_config(folder / "seed_0").values), number)


def test_a_page_of_runs_that_are_odd(runs: Path, tmp_path: Path) -> None:
    """Its figures and confusion matrices too."""
    folder = Path(shutil.copytree(runs, tmp_path / "runs"))
    for name in (run_files.RESULTS, run_files.METRICS):
        text = (folder / "seed_0" / name).read_text()
        for number in range(2):
            path = folder / "seed_0" / name
            odd = partial(random.Random(number).choice, ["1e308", "-1e308", "null", "0.0"])
            path.write_text(re.sub(r"\d+\.\d+", lambda _, odd=odd: odd(), text))
            only_user_errors(lambda: build_comparison([folder]).html(), number)
            only_user_errors(lambda: status(folder, as_json=False), number)
        path.write_text(text)


def test_the_lines_of_a_log(runs: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(runs, tmp_path / "runs"))
    path = folder / "seed_0" / run_files.METRICS
    lines = path.read_text().splitlines()
    for number in range(40):
        dice = random.Random(f"3 {number}")
        place = dice.randrange(len(lines))
        _, line = list(mutations(lines[place], "json", 1 + number, seed=3))[-1]
        written = [each.encode() for each in lines]
        written[place] = line
        path.write_bytes(b"\n".join([*written, b""]))
        assert only_user_errors(lambda: show(folder), number), "a line that is damaged is passed over"


def test_the_state_of_a_checkpoint(tmp_path: Path) -> None:
    """One of before, whose bits no checksum guards."""
    conflict = {"targets": [[0.0, 0.5], [0.5, 0.0]]}
    state = RunState(
        step=7, best_mean=0.5, best_step=7, best_each={"sst": {"step": 7, "value": 0.5}}, conflict=conflict
    )
    path = tmp_path / "step-00000007" / "state.json"
    path.parent.mkdir()
    save_file({"weight/value": torch.zeros(2)}, path.with_name("part.safetensors"))
    files = {"part.safetensors": path.with_name("part.safetensors").stat().st_size}
    text = to_json({**asdict(state), "files": files, "scaler": {"scale": 1.0, "fine": 3}})
    path.write_text(text)
    assert newest_intact(tmp_path) == path.parent
    for number, content in mutations(text, "json", 40, seed=4):
        path.write_bytes(content)
        assert only_user_errors(lambda: newest_intact(tmp_path), number), "it is passed over"
        if newest_intact(tmp_path):
            RunState.from_json(json.loads(path.read_text()))
