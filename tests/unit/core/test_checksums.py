"""A file that is not as it was written is named; folders without checksums are left alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from pal_dist.core.checksums import SUMS_FILE, check_sums, damages, sha256_of, write_sums
from pal_dist.core.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tasks").mkdir()
    for name in ("a", "tasks/b"):
        (tmp_path / name).write_bytes(name.encode() * 100)
    write_sums(tmp_path, {name: sha256_of(tmp_path / name) for name in ("a", "tasks/b")})
    return tmp_path


def test_whole(folder: Path) -> None:
    check_sums(folder)
    assert sha256_of(folder / "a") == "2816597888e4a0d3a36b82b83316ab32680eb8f00f8cd3b904d681246d285a0e"


def test_no_checksums_no_check(folder: Path) -> None:
    (folder / SUMS_FILE).unlink()
    (folder / "a").unlink()
    assert list(damages(folder)) == []


def test_each_file_that_is_damaged_is_named(folder: Path) -> None:
    (folder / "a").write_bytes(b"a" * 99 + b"b")
    (folder / "tasks" / "b").unlink()
    with pytest.raises(UserError, match=r"a is not as it was written(.|\n)*tasks/b is missing(.|\n)*from a copy"):
        check_sums(folder)
    assert list(damages(folder, ["tasks/b"])) == ["tasks/b is missing"]


@pytest.mark.parametrize("at", range(0, 140, 7))
def test_a_flipped_bit_in_the_checksums_is_found(folder: Path, at: int) -> None:
    content = bytearray((folder / SUMS_FILE).read_bytes())
    content[at % len(content)] ^= 2
    (folder / SUMS_FILE).write_bytes(content)
    assert list(damages(folder, ["a", "tasks/b"]))


def test_a_file_without_a_checksum(folder: Path) -> None:
    (folder / "c").touch()
    assert list(damages(folder, ["c"])) == [f"c has no checksum in {SUMS_FILE}"]
    assert list(damages(folder)) == []
