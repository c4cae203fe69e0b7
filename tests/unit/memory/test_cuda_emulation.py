"""Each piece of CUDA's semantics by its own figure."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pal_dist.memory import find_device, trace
from pal_dist.memory.closed_form import StepOptions
from tests.support.random_runs import batch_of, build, config_of, traced

ROWS = 256
"""So many that the peak lies where all activations are alive, not at the optimizer's step."""


class TestEmulation:
    def act(self, precision: str, attention: str = "sdpa", device: str = "t4", **options: object) -> int:
        config = config_of(256, 2, 4, **options)
        return traced(config, StepOptions(precision, attention), [batch_of(ROWS, 128)], find_device(device)).categories[
            "activations"
        ]

    def test_fused_attention_keeps_no_scores(self) -> None:
        # One full layer: 4 heads' probabilities and dropout's mask; the last layer asks first tokens only.
        kept = self.act("fp32", "eager", adapter="none") - self.act("fp32", "sdpa", adapter="none")
        scores = ROWS * 4 * 128 * 128
        assert kept == pytest.approx(scores * (4 + 1), rel=0.05)

    def test_unpadded_heads_fall_back_on_a_t4(self) -> None:
        from transformers import BertConfig, BertForSequenceClassification

        labels = {"input_ids": torch.zeros(8, 256, dtype=torch.long), "labels": torch.zeros(8, dtype=torch.long)}
        peaks = {}
        for heads in (12, 16):  # widths 17 and 16
            width = 204 if heads == 12 else 256
            config = BertConfig(
                hidden_size=width, num_hidden_layers=2, num_attention_heads=heads, intermediate_size=width
            )
            step = trace(
                lambda config=config: BertForSequenceClassification(config),
                labels,
                device=find_device("t4"),
                precision="fp16",
            )
            peaks[heads] = step.categories["activations"]
        assert peaks[12] > 2 * peaks[16]

    def test_half_precision_halves_activations_and_copies_weights(self) -> None:
        config = config_of(512, 4, 8, adapter="none")
        full, half = (
            traced(config, StepOptions(precision), [batch_of(16, 128)] * 2, find_device("t4"))
            for precision in ("fp32", "fp16")
        )
        assert 0.45 < half.categories["activations"] / full.categories["activations"] < 0.55
        matrices = sum(p.numel() for n, p in build(config).named_parameters() if p.ndim == 2 and "embeddings" not in n)
        assert half.categories["weight copies"] == pytest.approx(2 * matrices, rel=0.1)
        assert full.categories["weight copies"] == 0

    def test_dropout_keeps_one_byte(self) -> None:
        with_dropout, without = (
            self.act("fp32", adapter="none", hidden_dropout_prob=p, attention_probs_dropout_prob=p) for p in (0.1, 0.0)
        )
        # Embeddings and the full layer: three masks of a byte an element.
        assert with_dropout - without == pytest.approx(3 * ROWS * 128 * 256, rel=0.1)

    def test_multi_head_attention_is_opened(self) -> None:
        class Model(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.attention = nn.MultiheadAttention(64, 4, dropout=0.1, batch_first=True)

            def forward(self, values: torch.Tensor) -> tuple[torch.Tensor]:
                return (self.attention(values, values, values, need_weights=False)[0].float().square().mean(),)

        full, half = (
            trace(Model(), torch.zeros(8, 256, 64), device=find_device("t4"), precision=precision)
            for precision in ("fp32", "fp16")
        )
        assert half.categories["activations"] < 0.75 * full.categories["activations"]
