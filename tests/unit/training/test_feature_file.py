"""A feature file is a .npy file with a checksum behind it: whole and right, or found damaged, or not there."""

from __future__ import annotations

import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pal_dist.core import atomic_io
from pal_dist.core.atomic_io import draft_of
from pal_dist.core.errors import UserError
from pal_dist.training.feature_file import find_damage, write_feature_file

FEATURES = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)


def written(path: Path, dtype: str = "float32") -> Path:
    with write_feature_file(path, draft_of(path), FEATURES.shape, dtype) as rows:
        for first, last in ((0, 3), (3, 3), (3, 7)):
            rows.append(FEATURES[first:last])
    return path


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_written_and_read(dtype: str, tmp_path: Path) -> None:
    path = written(tmp_path / "features.npy", dtype)
    features = np.load(path, mmap_mode="r")
    np.testing.assert_array_equal(features, FEATURES.astype(dtype))
    assert find_damage(path, FEATURES.shape, dtype) is None
    assert list(tmp_path.iterdir()) == [path]


def test_the_format_is_that_of_version_0_1_0(tmp_path: Path) -> None:
    """That version wrote it row by row: the header, the rows, their CRC-32 in little endian."""
    plain = tmp_path / "plain.npy"
    with open(plain, "wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(FEATURES.dtype), "fortran_order": False, "shape": (7, 5)}
        np.lib.format.write_array_header_1_0(file, header)
        file.write(FEATURES.tobytes())
        file.write(zlib.crc32(FEATURES.tobytes()).to_bytes(4, "little"))
    assert find_damage(plain, FEATURES.shape, "float32") is None
    assert written(tmp_path / "new.npy").read_bytes() == plain.read_bytes()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda content: content[:-30], "length"),
        (lambda content: content[:-4], "checksum"),
        (lambda content: content + b"x", "checksum"),
        (lambda content: content[:140] + bytes([content[140] ^ 1]) + content[141:], "checksum"),
        (lambda content: b"", "No data left in file"),
        (lambda content: b"no features at all", "pickle"),
    ],
)
def test_damage_is_found(damage, reason: str, tmp_path: Path) -> None:
    path = written(tmp_path / "features.npy")
    path.write_bytes(damage(path.read_bytes()))
    assert reason in str(find_damage(path, FEATURES.shape, "float32"))


def test_another_shape_or_type_is_damage_too(tmp_path: Path) -> None:
    path = written(tmp_path / "features.npy")
    assert find_damage(path, (8, 5), "float32") == "it holds float32 of shape (7, 5), expected float32 of (8, 5)"
    assert find_damage(path, (7, 5), "float64") == "it holds float32 of shape (7, 5), expected float64 of (7, 5)"
    assert "No such file" in str(find_damage(tmp_path / "none.npy", (7, 5), "float32"))


def test_nothing_is_left_where_writing_fails(tmp_path: Path) -> None:
    def write_three_rows(then: Exception | None) -> None:
        path = tmp_path / "features.npy"
        with write_feature_file(path, draft_of(path), FEATURES.shape, "float32") as rows:
            rows.append(FEATURES[:3])
            if then is not None:
                raise then

    with pytest.raises(UserError, match="another rank"):
        write_three_rows(UserError("of another rank"))
    with pytest.raises(AssertionError, match="rows are missing"):
        write_three_rows(None)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_before_anything_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic_io.shutil, "disk_usage", lambda _: SimpleNamespace(free=99))
    path = tmp_path / "features.npy"
    with pytest.raises(UserError, match=r"140 bytes are needed and 99 are free.*--features off"):
        written(path)
    assert list(tmp_path.iterdir()) == []
