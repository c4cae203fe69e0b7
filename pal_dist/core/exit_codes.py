"""Exit codes, and how they get past a launcher: torchrun and Accelerate turn every failure of a process into a 1."""

from __future__ import annotations

from pathlib import Path

QUIET = (2, 3, 4, 75)
"""Codes with which all processes end together, each having said why: the launcher has nothing to add, or to kill."""


def exit_code_for_launcher(code: int, file: str | None) -> int:
    """The code to end this process with.

    Under a launch script, `file` is where the node's real exit code goes: the first process that ends badly writes it,
    for the others' ends follow from its own. A quiet end then is a 0 to the launcher, which spares the reader its
    traceback, and the script ends with the code from the file.
    """
    if not file or code == 0:
        return code
    path = Path(file)
    if not path.is_file() or not path.stat().st_size:
        path.write_text(f"{code}\n", encoding="ascii")
    return 0 if code in QUIET else code
