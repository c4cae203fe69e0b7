"""These tests need a CUDA GPU; without one each is skipped and says so."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _needs_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU: run `pytest tests/gpu` where there is one")
    torch.use_deterministic_algorithms(False)  # several CUDA kernels of attention have no deterministic form
