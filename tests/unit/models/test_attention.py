"""Attention and dropout: the right statistics, whatever kernel runs."""

from __future__ import annotations

import pytest
import torch


def test_fast_dropout_has_the_right_statistics() -> None:
    from pal_dist.models.attention import dropout

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


def test_attention_with_and_without_dropout_agree_in_expectation() -> None:
    from pal_dist.models.attention import attention

    q, k, v = torch.randn(3, 2, 7, 8)
    mask = torch.ones(2, 1, 1, 7, dtype=torch.bool)
    mask[1, :, :, 4:] = False
    exact = attention(q, k, v, mask, heads=2, p=0.0, training=True)
    torch.manual_seed(1)
    mean = sum(attention(q, k, v, mask, heads=2, p=0.1, training=True) for _ in range(3000)) / 3000
    torch.testing.assert_close(mean, exact, rtol=0.05, atol=0.05)


def test_padding_heads_for_fused_kernels_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from pal_dist.models import attention as module

    q, k, v = torch.randn(3, 2, 6, 34, dtype=torch.float64)  # two heads of 17, as a PAL's
    mask = torch.ones(2, 1, 1, 6, dtype=torch.bool)
    mask[0, :, :, 3:] = False
    plain = module.attention(q, k, v, mask, heads=2, p=0.0, training=False)
    monkeypatch.setattr(module, "head_width_multiple", lambda device: 8)
    padded = module.attention(q, k, v, mask, heads=2, p=0.0, training=False)
    torch.testing.assert_close(padded, plain, rtol=0, atol=1e-12)
