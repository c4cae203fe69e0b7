"""The verb `convert`. (What it writes: tests/unit/models/test_convert.py.)"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pal_dist.commands.convert import convert
from pal_dist.core.errors import UserError
from pal_dist.models import convert as conversion


def test_all_four_are_needed() -> None:
    with pytest.raises(UserError, match=r"convert needs --bert_config, --tasks$"):
        convert({"checkpoint": "a.bin", "output_dir": "x"})


def test_what_is_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(conversion, "convert_files", lambda *arguments: calls.append(arguments))
    flags = {"checkpoint": "a.bin", "bert_config": "b.json", "tasks": "sst,sts", "output_dir": "x"}
    assert convert(flags) == Path("x")
    assert calls == [(Path("a.bin"), Path("b.json"), ["sst", "sts"], Path("x"))]
