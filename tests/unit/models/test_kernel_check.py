"""The check at start: a right kernel stays, a wrong or failing one is passed over and named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pal_dist.models import kernel_check, packed_kernels
from pal_dist.models.attention_by_length import attention_by_length
from pal_dist.models.kernel_check import check_packed_kernel
from pal_dist.models.precision import KernelTarget


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """This processor takes itself for a GPU, whose kernels are the test's own."""
    kernels: dict[str, Any] = {"by_length": attention_by_length}
    for module in (kernel_check, packed_kernels):
        monkeypatch.setattr(module, "KERNELS", kernels)
    monkeypatch.setattr(packed_kernels, "unusable", unusable := {})
    monkeypatch.setattr(kernel_check, "unusable", unusable)
    monkeypatch.setattr(kernel_check, "kernel_target", lambda _: KernelTarget("cuda", (8, 0)))
    return kernels


def wrong(*arguments: Any, **options: Any) -> Tensor:
    return attention_by_length(*arguments, **options) * 1.5


def failing(*_: Any, **__: Any) -> Tensor:
    raise RuntimeError("CUDA error: no kernel image is available\nfurther lines")


def check() -> tuple[str, str]:
    return check_packed_kernel(torch.device("cpu"), torch.bfloat16, heads=3, head_width=17)


def test_a_right_kernel_stays(gpu: dict[str, Any]) -> None:
    gpu["flash"] = attention_by_length
    assert check() == ("flash", "")


def test_a_wrong_one_is_passed_over(gpu: dict[str, Any]) -> None:
    gpu |= {"flash": wrong, "efficient": attention_by_length}
    kernel, problem = check()
    assert kernel == "efficient"
    assert problem.startswith("flash: off by 5")
    assert check() == ("efficient", ""), "once is enough"


def test_without_any_the_plain_form_is_left(gpu: dict[str, Any]) -> None:
    gpu |= {"flash": failing, "efficient": wrong}
    kernel, problem = check()
    assert kernel == "by_length"
    assert "flash: CUDA error: no kernel image is available; efficient: off by" in problem


def test_random_numbers_of_a_run_stay() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    assert check() == ("by_length", "")
    assert torch.equal(torch.rand(3), expected)
