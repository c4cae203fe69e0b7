"""Libraries that only some installations have: imported where they are used, or asked for by name."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from pal_dist.core.errors import UserError


def has_library(module: str) -> bool:
    """Whether the library is installed; it is not imported."""
    return find_spec(module) is not None


def cure(extra: str) -> str:
    """What installs the libraries of an extra."""
    return f"pip install 'pal-dist[{extra}]'"


def require(module: str, *, extra: str, what: str) -> Any:
    """The module. Raises UserError, naming `what` needs it and the extra that brings it, where it is not installed."""
    try:
        return import_module(module)
    except ImportError:
        raise UserError(f"{what} needs {module.split('.')[0]}: {cure(extra)}") from None
