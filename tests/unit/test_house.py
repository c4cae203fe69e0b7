"""The house: order of the folders, room for a reader, and pages that name only what exists.

Who may import whom is a contract of import-linter (pyproject.toml, `lint-imports`), complexity and the environment are
rules of ruff; here is what no tool checks.
"""

from __future__ import annotations

import ast
import re
import runpy
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import ROOT

PACKAGE = ROOT / "pal_dist"
MODULES = sorted(PACKAGE.rglob("*.py"))
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
PAGES.remove(ROOT / "CHANGELOG.md")  # it names what has gone
OUTSIDE = {
    "accelerate_configs": "pal_dist/accelerate_configs",
    "ds_configs": "pal_dist/ds_configs",
    "launch": "pal_dist/launch",
}
"""Folders beside the package that the wheel has inside it."""

FUNCTION_LINES = 60
STEP_LINES = 40


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    """pyproject.toml."""
    return pytest.importorskip("tomllib").loads((ROOT / "pyproject.toml").read_text())


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def imported_modules(path: Path) -> set[str]:
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return modules


def under(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


# -- who may know whom


def test_the_import_contracts_cover_every_folder(project: dict[str, Any]) -> None:
    contracts = {contract["id"]: contract for contract in project["tool"]["importlinter"]["contracts"]}
    children = {path.stem for path in PACKAGE.glob("*.py")} | {
        path.parent.name for path in PACKAGE.glob("*/__init__.py")
    }
    assert set(contracts["floors"]["layers"]) == children - {"__init__"}
    without_engines = {f"pal_dist.{name}" for name in children - {"__init__", "__main__", "distributed"}}
    assert set(contracts["engines"]["source_modules"]) == without_engines


def test_only_distributed_knows_the_engines() -> None:
    for path in MODULES:
        if path.is_relative_to(PACKAGE / "distributed"):
            continue
        engines = [name for name in imported_modules(path) if under(name, "accelerate", "deepspeed")]
        assert not engines, f"{relative(path)} imports {engines}"
        assert "torch.distributed" not in path.read_text(), relative(path)


def test_only_distributed_and_cli_read_the_environment(project: dict[str, Any]) -> None:
    """Ruff's rule TID251 bans it; here: nobody is excused but these."""
    rules = project["tool"]["ruff"]["lint"]
    assert {"os.environ", "os.getenv", "sys.argv", "torch.distributed"} <= set(
        rules["flake8-tidy-imports"]["banned-api"]
    )
    excused = {files for files, ignored in rules["per-file-ignores"].items() if "TID251" in ignored}
    assert {files for files in excused if files.startswith("pal_dist")} == {"pal_dist/distributed/*", "pal_dist/cli.py"}
    assert not [relative(path) for path in MODULES if re.search(r"noqa:.*TID251", path.read_text())]


def test_tests_do_not_import_tests() -> None:
    for path in (ROOT / "tests").rglob("test_*.py"):
        siblings = [
            name for name in imported_modules(path) if under(name, "tests") and not under(name, "tests.support")
        ]
        assert set(siblings) <= {"tests"}, f"{relative(path)} imports {siblings}: what two need lives in tests/support"


def test_unit_tests_start_no_process() -> None:
    for path in (ROOT / "tests" / "unit").rglob("test_*.py"):
        starters = {
            name
            for name in imported_modules(path)
            if under(name, "subprocess", "multiprocessing", "tests.support.ranks")
        }
        assert not starters, f"{relative(path)} imports {starters}: it belongs into tests/ranks"


# -- room for a reader


def test_the_training_step_is_a_paragraph() -> None:
    (step,) = (node for node in functions(PACKAGE / "training" / "trainer.py") if node.name == "step")
    assert step.end_lineno is not None
    assert step.end_lineno - step.lineno <= STEP_LINES


def test_functions_are_short() -> None:
    long = []
    for path in MODULES:
        for node in functions(path):
            assert node.end_lineno is not None
            lines = node.end_lineno - node.lineno + 1
            if lines > FUNCTION_LINES:
                long.append(f"{relative(path)}: {node.name} has {lines} lines, at most {FUNCTION_LINES}")
    assert long == []


def is_table_of_numbers(statement: ast.stmt) -> bool:
    """At least eight numbers, and as many of them as of strings."""
    values = [node.value for node in ast.walk(statement) if isinstance(node, ast.Constant)]
    kinds = Counter("text" if isinstance(value, str) else type(value).__name__ for value in values)
    numbers = kinds["int"] + kinds["float"]
    return numbers >= 8 and numbers >= kinds["text"]


def squeezed(path: Path) -> list[int]:
    """Lines with `# fmt: skip` that do not end a table of numbers."""
    with path.open("rb") as file:
        comments = [token for token in tokenize.tokenize(file.readline) if token.type == tokenize.COMMENT]
    lines = {token.start[0] for token in comments if "fmt: skip" in token.string}
    statements = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.stmt)]
    tables = {node.end_lineno for node in statements if node.end_lineno in lines and is_table_of_numbers(node)}
    return sorted(lines - tables)


def test_only_tables_of_numbers_are_laid_out_by_hand() -> None:
    lines = {relative(path): squeezed(path) for path in (*MODULES, *sorted((ROOT / "tests").rglob("*.py")))}
    assert {name: numbers for name, numbers in lines.items() if numbers} == {}, (
        "`# fmt: skip` is for tables of numbers: remove it and run `ruff format`"
    )


# -- what is written is there


def test_readme_names_only_settings_and_verbs_that_exist() -> None:
    from pal_dist.cli import VERBS

    text = (ROOT / "README.md").read_text()
    scripts = "".join(path.read_text() for path in (ROOT / "launch").rglob("*") if path.suffix in (".sh", ".sbatch"))
    ours = ["help", *(name for verb in VERBS.values() for name in verb.flags)]
    of_scripts = ["dry-run", "cpu", "processes", "unit"]
    for line in re.findall(r"^read_arguments \S+ (.*) -- ", scripts, flags=re.MULTILINE):
        of_scripts += line.split()
    of_launchers = ["config_file", "num_processes", "nproc-per-node", "max-restarts"]
    of_sbatch = ["nodes", "gpus-per-node", "signal", "array", "time", "mem"]
    of_others = [*of_launchers, *of_sbatch, "logdir"]
    known = {f"--{name}" for name in (*ours, *of_scripts, *of_others)}
    flags = {word.strip(".,;:()|") for word in re.split(r"[\s`=]+", text) if re.match("--[a-z]", word)}
    assert flags - known == set()
    verbs = set(re.findall(r"(?:^|`)pal-dist ([a-z]+)", text, flags=re.MULTILINE))
    assert len(verbs) > 4
    assert verbs <= set(VERBS)


PLACES = "pal_dist|tests|launch|docs|accelerate_configs|ds_configs"


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_pages_name_only_files_that_exist(page: Path) -> None:
    """Words in capitals (NAME, FOLDER) stand for any. Examples of new files (they begin with their path) may be new."""
    text = re.sub(r"```\w+\n# .*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        assert link.startswith(("http://", "https://")) or (page.parent / link).exists(), f"{relative(page)}: {link}"
    for named in re.findall(rf"(?<![\w/.<-])(?:{PLACES})/[\w./*-]*\w", text):
        assert list(ROOT.glob(re.sub("[A-Z]{4,}", "*", named))), f"{relative(page)}: {named} does not exist"


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_pages_name_only_tests_that_exist(page: Path) -> None:
    for file, name in re.findall(r"(tests/[\w/]+\.py)::(\w+)", page.read_text(encoding="utf-8")):
        assert re.search(rf"^\s*(def|class) {name}\b", (ROOT / file).read_text(), re.MULTILINE), f"{file}::{name}"


# -- the wheel


def test_every_file_is_in_the_wheel(project: dict[str, Any]) -> None:
    setup = project["tool"]["setuptools"]
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in PACKAGE.rglob("__init__.py")}
    assert set(setup["packages"]) == folders | {f"pal_dist.{name}" for name in OUTSIDE}
    patterns = [
        f"{package.replace('.', '/')}/{pattern}"
        for package, patterns in setup["package-data"].items()
        for pattern in patterns
    ]
    files = [path for path in PACKAGE.rglob("*") if path.suffix not in (".py", ".pyc")]
    names = [relative(path) for path in files if path.is_file()]
    for folder, inside in OUTSIDE.items():
        inner = [path.relative_to(ROOT / folder) for path in (ROOT / folder).rglob("*") if path.is_file()]
        names += [f"{inside}/{path.as_posix()}" for path in inner]
    assert len(names) > 40
    assert [name for name in names if not any(fnmatch(name, pattern) for pattern in patterns)] == []


def test_the_version_is_written_once(project: dict[str, Any]) -> None:
    from pal_dist import __version__

    assert "version" in project["project"]["dynamic"]
    heading = "Unreleased" if "dev" in __version__ else __version__
    assert f"## [{heading}]" in (ROOT / "CHANGELOG.md").read_text()


def test_module_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["pal_dist", "--help"])
    runpy.run_module("pal_dist", run_name="__main__", alter_sys=True)
    assert "train" in capsys.readouterr().out
