"""Peaks of forward and backward that others recorded on GPUs, against the trace. No GPU is needed.

    python tests/bench/recorded_peaks.py

Recorded: `torch.cuda.max_memory_allocated` x 1e-6 of `logits.sum().backward()` without an optimizer, eager attention
and SDPA. huggingface/transformers pull request 28802 (BertLMHeadModel of bert-base, float32, an A100 of 80 GB); gist
hackyon/2bfcfb59666fab23655f6e62bc0752ba (the same in fp16); pull request 32092 (ALBERT-base, masked LM, fp16).
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from transformers import AlbertConfig, AlbertForMaskedLM, BertConfig, BertLMHeadModel

from pal_dist.core.console import table
from pal_dist.memory import find_device, trace

MEGABYTE = 1e6


@dataclass(frozen=True)
class Recorded:
    """One row: megabytes of both kinds of attention."""

    model: str
    precision: str
    batch: int
    length: int
    eager: float
    sdpa: float


ROWS = [
    Recorded("bert", "fp32", 1, 256, 1128.190, 1065.286),
    Recorded("bert", "fp32", 1, 512, 1345.791, 1093.933),
    Recorded("bert", "fp32", 2, 256, 1175.685, 1093.933),
    Recorded("bert", "fp32", 2, 512, 2123.874, 1370.097),
    Recorded("bert", "fp16", 4, 256, 939.213, 764.834),
    Recorded("bert", "fp16", 8, 512, 3629.401, 2134.262),
    Recorded("bert", "fp16", 16, 256, 2874.426, 2134.262),
    Recorded("albert", "fp16", 1, 256, 234.781, 217.758),
    Recorded("albert", "fp16", 2, 512, 868.131, 717.332),
]


class _WholeGradient(torch.autograd.Function):
    """The sum's gradient is one number for all logits, which cuBLAS has to be given as a whole tensor."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor) -> torch.Tensor:
        return logits.view_as(logits)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0].contiguous()


def traced(row: Recorded, attention: str) -> float:
    """Megabytes of the same forward and backward pass."""
    dtype = torch.float16 if row.precision == "fp16" else torch.float32

    def build() -> torch.nn.Module:
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)  # fake tensors are not converted afterwards
        try:
            return fresh()
        finally:
            torch.set_default_dtype(before)

    def fresh() -> torch.nn.Module:
        if row.model == "bert":
            return BertLMHeadModel(BertConfig(attn_implementation=attention, is_decoder=False))  # type: ignore[no-any-return]
        config = AlbertConfig(
            hidden_size=768,
            num_attention_heads=12,
            intermediate_size=3072,
            attn_implementation=attention,
            hidden_dropout_prob=0,
            attention_probs_dropout_prob=0,
        )
        return AlbertForMaskedLM(config)  # type: ignore[no-any-return]

    ids = torch.zeros(row.batch, row.length, dtype=torch.long)
    mask = torch.ones(row.batch, row.length, dtype=torch.long)
    step = trace(
        build,
        {"input_ids": ids, "attention_mask": mask},
        loss=lambda output, _: _WholeGradient.apply(output.logits).sum(),
        optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.0, foreach=False),
        device=find_device("a100-80"),
        attention=attention,
        max_norm=None,
        replay=False,
    )
    return step.peak / MEGABYTE


def main() -> None:
    rows, errors = [], []
    for row in ROWS:
        for attention, recorded in (("eager", row.eager), ("sdpa", row.sdpa)):
            predicted = traced(row, attention)
            errors.append(predicted / recorded - 1)
            rows.append(
                [
                    row.model,
                    row.precision,
                    f"{row.batch} x {row.length}",
                    attention,
                    f"{recorded:,.1f}",
                    f"{predicted:,.1f}",
                    f"{errors[-1]:+.2%}",
                ]
            )
    print(table(["model", "precision", "batch", "attention", "recorded MB", "traced MB", "error"], rows))
    worst = max(errors, key=abs)
    print(f"mean {statistics.mean(map(abs, errors)):.2%}, worst {worst:+.2%}")


if __name__ == "__main__":
    main()
