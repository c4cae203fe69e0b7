"""The names of a model's parameters are known in models/ and nowhere else: others ask the model."""

from __future__ import annotations

import ast

from tests.support.paths import ROOT

NAMES = ("bert.", "adapters.", "heads.", "embeddings.", "encoder.layer")


def test_no_parameter_names_outside_of_models() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {node.value!r}"
        for path in sorted((ROOT / "pal_dist").rglob("*.py"))
        if "models" not in path.parts
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " not in node.value
        if node.value.startswith(NAMES) or node.value in ("bert", "adapters", "heads")
    ]
    assert found == []
