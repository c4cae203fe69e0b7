"""The house: who may import whom, how large a room may be, and that every file is alive."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PACKAGE = ROOT / "pal_dist"

FLOORS = [
    {"errors", "exits"},
    {"files", "engine.launched", "doctor.findings", "compare.noise"},
    {
        "config", "objectives", "attention", "conflict", "logbook", "sampling", "strategy", "stopping",
        "memory.tracker", "memory.allocator", "engine.group", "engine.precision", "recipes",
    },
    {
        "tasks", "settings", "pretrained", "report", "batching", "corpus", "adapters.base", "memory.devices",
        "engine.backend", "engine.task_gradients",
    },
    {
        "balance", "run_state", "reading", "optim", "pages", "status", "encoder", "fetch", "adapters.pal",
        "adapters.low_rank", "adapters.lhuc", "adapters.lora", "adapters.top_attention", "memory.emulation",
        "engine.zero", "engine.fully_sharded", "engine.rehearsal", "doctor.host", "doctor.gpus",
    },
    {"data", "adapters.houlsby", "memory.trace", "listing", "compare.runs"},
    {"adapters", "sources", "compare.tables", "compare.figures"},
    {"compare", "model", "engine", "memory", "memory.closed_form", "manifests"},
    {"memory.guard", "export", "convert", "memory.sharding"},
    {"evaluate", "checkpoint", "memory.probe", "memory.speed", "memory.picture"},
    {"trainer", "memory.plan", "features"},
    {"planning", "memory.scaling"},
    {"announce", "fitting", "run_folder"},
    {"session"},
    {"answers", "plans", "profiling", "doctor.together"},
    {"launching", "doctor"},
    {"cli"},
    {"__main__"},
]  # fmt: skip
"""A room imports only from floors before its own. A new room is entered here."""

ENGINE_LIBRARIES = {"accelerate", "deepspeed"}


def rooms() -> dict[str, Path]:
    names = {path: ".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in PACKAGE.rglob("*.py")}
    return {name.removesuffix(".__init__"): path for path, name in names.items() if name != "__init__"}


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def test_every_room_stands_on_a_floor() -> None:
    assert set(chain(*FLOORS)) == set(rooms())


@pytest.mark.parametrize("room", sorted(rooms()))
def test_rooms_import_from_below(room: str) -> None:
    level = {name: number for number, floor in enumerate(FLOORS) for name in floor}
    for name in imports(rooms()[room]):
        below = name.removeprefix("pal_dist.")
        if name.startswith("pal_dist.") and below in level and below != room:  # a package and its own rooms
            assert level[below] < level[room], f"{room} (floor {level[room]}) imports {below} (floor {level[below]})"


def test_only_the_engine_knows_the_engines() -> None:
    for room, path in rooms().items():
        text = path.read_text()
        if room.split(".")[0] != "engine":
            assert not {name.split(".")[0] for name in imports(path)} & ENGINE_LIBRARIES, room
            assert "torch.distributed" not in text, room
        if room.split(".")[0] not in ("engine", "cli"):
            assert "os.environ" not in text, room
            assert "sys.argv" not in text, room


def test_rooms_are_small() -> None:
    sizes = sorted(len(path.read_text().splitlines()) for path in rooms().values())
    assert sizes[-1] <= 300
    assert sizes[len(sizes) // 2] <= 180


def test_the_training_step_is_a_paragraph() -> None:
    tree = ast.parse((PACKAGE / "trainer.py").read_text())
    (step,) = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "step")
    assert step.end_lineno - step.lineno <= 40


def test_readme_names_only_what_exists() -> None:
    from pal_dist.cli import VERBS
    from pal_dist.commands.help import COMPARE_OPTIONS, LAUNCH_OPTIONS, PLAN_OPTIONS
    from pal_dist.config.resolve import settings

    text = (ROOT / "README.md").read_text()
    words = re.split(r"[\s`=]+", text)
    scripts = "".join(path.read_text() for path in (ROOT / "launch").rglob("*") if path.suffix in (".sh", ".sbatch"))
    known = {f"--{name}" for name in settings()} | {
        "--config", "--recipe", "--split", "--task", "--text", "--text_b", "--help", "--config_file", "--logdir",
        "--checkpoint", "--bert_config", "--data_dir", "--num_processes", "--nproc-per-node",
        "--max-restarts", *(f"--{name}" for name in [*PLAN_OPTIONS, *LAUNCH_OPTIONS, *COMPARE_OPTIONS]),
        "--nodes", "--gpus-per-node", "--signal", "--array", "--time", "--mem",  # sbatch's own
        *(f"--{name}" for line in re.findall(r"^read_arguments \S+ (.*) -- ", scripts, flags=re.MULTILINE)
          for name in line.split()),
        "--dry-run", "--cpu", "--processes",  # of every script: lib.sh
    }  # fmt: skip
    flags = {word.strip(".,;:()|") for word in words if re.match("--[a-z]", word)}
    assert flags - known == set()
    verbs = set(re.findall(r"(?:^|`)pal-dist ([a-z]+)", text, flags=re.MULTILINE))
    assert len(verbs) > 4
    assert verbs <= set(VERBS)


def test_every_package_is_in_the_wheel() -> None:
    listed = set(
        pytest.importorskip("tomllib").loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    )
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in PACKAGE.rglob("__init__.py")}
    assert listed == folders | {"pal_dist.accelerate_configs", "pal_dist.ds_configs", "pal_dist.launch"}


def test_module_runs() -> None:
    said = subprocess.run([sys.executable, "-m", "pal_dist", "--help"], capture_output=True, text=True, check=True)
    assert "train" in said.stdout
