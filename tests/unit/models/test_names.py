"""The names of a model's parameters are known in models/ and nowhere else: others ask the model."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from tests.support.paths import ROOT

PREFIXES = ("bert.", "adapters.", "heads.", "embeddings.", "encoder.layer")
MODULES = ("bert", "adapters", "heads")
ATTRIBUTES = ("bert", "adapters")
"""(`heads` is also the number of attention heads, in memory/.)"""


def names_in(text: str) -> Iterator[tuple[int, str]]:
    """(line, name) where a module's text names a parameter of the model, or reaches for a part of it by name."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " not in node.value:
            if node.value.startswith(PREFIXES) or node.value in MODULES:
                yield node.lineno, repr(node.value)
        elif isinstance(node, ast.Attribute) and node.attr in ATTRIBUTES:
            yield node.lineno, f".{node.attr}"


def test_no_parameter_names_outside_of_models() -> None:
    offenders = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in sorted((ROOT / "pal_dist").rglob("*.py"))
        if path.parent.parent.name != "models" and path.parent.name != "models"
        for line, name in names_in(path.read_text())
    ]
    assert offenders == []


def test_what_counts_as_a_name() -> None:
    named = ["model.bert.parameters()", 'name.startswith("bert.")', 'f"heads.{task}"', 'model.get_submodule("bert")']
    assert all(list(names_in(text)) for text in named)
    assert not list(names_in('model.shared_parameters(), "the bert. of all", shape.heads'))
