"""An installation without some libraries, in this process."""

from __future__ import annotations

import sys

import pytest


def hide_libraries(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Until the test ends, to import one of these libraries, or to look for it, fails as if it were not installed."""
    for loaded in list(sys.modules):
        if loaded.split(".")[0] in names:
            monkeypatch.delitem(sys.modules, loaded)
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)
