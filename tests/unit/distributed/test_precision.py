"""The number format by what a device is good at; fp16's loss scale."""

from __future__ import annotations

import pytest

from pal_dist.core.errors import UserError
from pal_dist.distributed.precision import choose_precision


@pytest.mark.parametrize(
    ("asked", "capability", "chosen"),
    [("auto", None, "fp32"), ("auto", (7, 5), "fp16"), ("auto", (8, 0), "bf16"), ("auto", (9, 0), "bf16"),
     ("fp32", (8, 0), "fp32"), ("fp16", (9, 0), "fp16"), ("bf16", None, "bf16"),
     ("fp16", None, "needs a GPU"), ("bf16", (7, 5), "only emulates bf16")],
)  # fmt: skip
def test_precision_by_capability(asked: str, capability: tuple[int, int] | None, chosen: str) -> None:
    if " " in chosen:
        with pytest.raises(UserError, match=chosen):
            choose_precision(asked, capability)
    else:
        assert choose_precision(asked, capability).name == chosen
