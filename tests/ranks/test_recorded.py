"""The trace against what GPUs were recorded to use: Transformers' own page on one GPU, years before this program."""

from __future__ import annotations

import pytest

from tests.support.memory import RECORDED, predicted_mebibytes


@pytest.mark.long
@pytest.mark.parametrize("name", RECORDED)
def test_within_four_per_cent(name: str) -> None:
    assert predicted_mebibytes(name) / RECORDED[name][0] == pytest.approx(1, abs=0.04)
