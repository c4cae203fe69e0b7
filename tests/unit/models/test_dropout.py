"""Dropout: the right statistics, whatever kernel runs."""

from __future__ import annotations

import pytest
import torch

from pal_dist.models.dropout import dropout


def test_fast_dropout_has_the_right_statistics() -> None:
    values = torch.full((1000, 1003), 2.0, requires_grad=True)
    result = dropout(values, 0.1, True)
    dropped = (result == 0).float().mean().item()
    assert dropped == pytest.approx(0.1, abs=0.002)
    assert result.mean().item() == pytest.approx(2.0, rel=0.002)
    assert result.max().item() == pytest.approx(2 / 0.9, rel=1e-4)
    result.sum().backward()
    torch.testing.assert_close(values.grad * 2, result.detach())
    rows = (result == 0).float().mean(dim=1)
    assert rows.std().item() < 0.02  # no row or column is favoured
    assert dropout(values, 0.1, False) is values
