"""A real browser without a screen, for the pages that `compare` writes."""

from __future__ import annotations

import shutil
from pathlib import Path

QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--hide-scrollbars",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def browser(profile: Path) -> list[str] | None:
    """The command that a page's address and more options go behind; None where there is no Chromium."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    return [program, *QUIET, f"--user-data-dir={profile}"] if program else None
