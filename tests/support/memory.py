"""Ways of counting the memory of one step, which tests and benchmarks hold to each other."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pal_dist.core.units import MEBIBYTE
from pal_dist.memory import find_device, trace
from pal_dist.memory.closed_form import step_bytes
from pal_dist.memory.tracker import Tracker
from tests.support.random_runs import batch_of, loss_of, random_run, shape, traced

Sizes = list[tuple[Any, ...]]
"""(examples, length, tasks ...) of each micro-batch."""


def real_step(model: nn.Module, optimizer: torch.optim.Optimizer, sizes: Sizes, precision: str = "fp32") -> None:
    """A whole optimizer step on this CPU."""
    for size in sizes:
        batch = batch_of(*size)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = loss_of(model(batch), batch)
        (loss / len(sizes)).backward()
        del loss, batch
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def existing_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """The tensors that are there before a step."""
    candidates = [*model.parameters(), *model.buffers()]
    candidates += [value for entries in optimizer.state.values() for value in entries.values()]
    return [part for part in candidates if isinstance(part, torch.Tensor)]


def measured_on_cpu(model: nn.Module, optimizer: torch.optim.Optimizer, sizes: Sizes, precision: str) -> int:
    """Highest bytes of a step's tensors, the second step's, when the optimizer's state exists."""
    real_step(model, optimizer, sizes, precision)
    with Tracker(model, granularity=1) as tracker:
        tracker.mark(existing_tensors(model, optimizer), "parameters")
        real_step(model, optimizer, sizes, precision)
    return tracker.peak


def closed_form_error(seed: int) -> float:
    """The closed form over the trace, less one, on a random run."""
    run = random_run(seed)
    whole = traced(run.config, run.options, run.batches, run.device)
    form = step_bytes(shape(run.config), run.options, run.size, accumulates=run.micro_batches > 1)
    return form.peak / whole.peak - 1


CONTEXT = 1343
"""MiB that CUDA's context took on the recorded V100."""

RECORDED: dict[str, tuple[int, dict[str, Any]]] = {
    "batch 4": (14949, {"rows": 4}),
    "batch 1 x 4 accumulated": (8681, {"rows": 1, "times": 4}),
    "and checkpointing": (6775, {"rows": 1, "times": 4, "checkpointing": True}),
    "batch 4, fp16": (13939, {"rows": 4, "precision": "fp16"}),
    "all of them": (7275, {"rows": 1, "times": 4, "checkpointing": True, "precision": "fp16"}),
}
"""MiB that nvidia-smi showed, and how it came to them. huggingface/transformers v4.18 to v4.27,
docs/source/en/perf_train_gpu_one.mdx: bert-large-uncased for sequence classification, 512 tokens, a V100 of 16 GB."""


def predicted_mebibytes(name: str) -> float:
    """What nvidia-smi would have shown, by a trace.

    The programs of that time kept zeroed gradients between steps (Transformers before PyTorch 2) and both sides of
    softmax (PyTorch before 1.11).
    """
    from transformers import BertConfig, BertForSequenceClassification

    options = dict(RECORDED[name][1])
    rows, times = options.pop("rows"), options.pop("times", 1)
    config = BertConfig(
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        attn_implementation="eager",
    )
    batch = {"input_ids": torch.zeros(rows, 512, dtype=torch.long), "labels": torch.zeros(rows, dtype=torch.long)}
    step = trace(
        lambda: BertForSequenceClassification(config),
        [batch] * times,
        device=find_device("v100-16"),
        attention="eager",
        optimizer=lambda model: torch.optim.AdamW(model.parameters(), lr=1e-5, foreach=False),
        keeps_gradients=True,
        softmax_keeps_input=True,
        **options,
    )
    return step.reserved() / MEBIBYTE + CONTEXT
