"""A checksum of each file of a folder, in the form that `sha256sum -c SHA256SUMS` reads: a bit that has flipped on disk
or on the way shows when the folder is opened, not as other answers."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from pal_dist.core.documents import there_is
from pal_dist.core.errors import UserError

SUMS_FILE = "SHA256SUMS"

_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")

_BLOCK = 1 << 20


def sha256_of(path: Path) -> str:
    """Of a file's content, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def write_sums(folder: Path, sums: Mapping[str, str]) -> None:
    """Write the checksums, by the files' names, beside them."""
    lines = [f"{checksum}  {name}\n" for name, checksum in sorted(sums.items())]
    (folder / SUMS_FILE).write_text("".join(lines), encoding="utf-8")


def damages(folder: Path, names: Collection[str] | None = None) -> Iterator[str]:
    """What is wrong with the named files, by default with all that have a checksum.

    Nothing where no checksums are kept, as in folders of before.
    """
    path = folder / SUMS_FILE
    if not path.is_file():
        return
    matches = [_LINE.fullmatch(line) for line in path.read_bytes().decode("utf-8", "replace").splitlines()]
    if None in matches:
        yield f"{SUMS_FILE}: line {1 + matches.index(None)} is no checksum with a file's name"
    sums = {match[2]: match[1] for match in matches if match}
    for name in sums if names is None else names:
        if not there_is(folder / name):
            yield f"{name} is missing"
        elif name not in sums:
            yield f"{name} has no checksum in {SUMS_FILE}"
        elif sha256_of(folder / name) != sums[name]:
            yield f"{name} is not as it was written: its SHA-256 is not the one in {SUMS_FILE}"


def check_sums(folder: Path, names: Collection[str] | None = None) -> None:
    """Raises UserError, naming each file that is not as it was written."""
    problems = [f"{folder}: {problem}" for problem in damages(folder, names)]
    if problems:
        raise UserError(
            "\n".join(problems) + f"\nPut the files back from a copy. Whoever has changed one on purpose deletes its "
            f"line in {folder / SUMS_FILE}"
        )
