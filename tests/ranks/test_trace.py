"""Law 7: a trace on fake tensors is what real tensors allocate, for every option; and models of other people."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from pal_dist.memory import find_device, trace
from pal_dist.memory.closed_form import StepOptions
from tests.support.memory import measured_on_cpu
from tests.support.random_runs import batch_of, build, config_of, optimizer_of, random_run, traced


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize(
    ("precision", "checkpoint_layers", "optimizer"),
    list(product(("fp32", "bf16"), (0, 1, 2), ("adamw", "adamw_8bit", "paged_adamw_8bit"))),
)
def test_equals_real_allocations_on_a_cpu(precision: str, checkpoint_layers: int, optimizer: str) -> None:
    config = config_of(96, 3, 4, "pal", 48, 4, vocab_size=500)
    sizes = [(12, 64, "sst", "para", "sts"), (8, 50, "para"), (4, 80, "sts")]
    batches = [batch_of(*size) for size in sizes]
    step = traced(config, StepOptions(precision, "sdpa", checkpoint_layers, optimizer), batches, None)
    model = build(config, checkpoint_layers).train()
    measured = measured_on_cpu(model, optimizer_of(model, optimizer), sizes, precision)
    assert step.peak == pytest.approx(measured, rel=1e-3)
    assert sum(step.categories.values()) == step.peak


def test_other_peoples_models() -> None:
    """A Transformers model with a loss of its own, as a function and as a module, checkpointed and not."""
    from transformers import BertConfig, BertForQuestionAnswering

    config = BertConfig(hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024)
    positions = torch.zeros(16, dtype=torch.long)
    batch = {
        "input_ids": torch.zeros(16, 128, dtype=torch.long),
        "start_positions": positions,
        "end_positions": positions,
    }
    device = find_device("t4")
    plain = trace(lambda: BertForQuestionAnswering(config), batch, device=device, precision="fp16")
    assert trace(BertForQuestionAnswering(config), batch, device=device, precision="fp16").peak == plain.peak
    less = trace(lambda: BertForQuestionAnswering(config), batch, device=device, precision="fp16", checkpointing=True)
    assert less.peak < plain.peak
    parameters = sum(p.numel() for p in BertForQuestionAnswering(config).parameters()) * 4
    assert plain.categories["parameters"] == pytest.approx(parameters, rel=0.01)
    assert plain.categories["optimizer state"] == pytest.approx(2 * parameters, rel=0.01)
    assert plain.reserved() >= plain.peak
    assert next(iter(plain.modules)).startswith("bert.encoder.layer")


@pytest.mark.parametrize("seed", range(4))
def test_a_first_step_changes_no_byte_of_the_second(seed: int) -> None:
    run = random_run(seed)
    long, short = (traced(run.config, run.options, run.batches, run.device, replay=replay) for replay in (True, False))
    assert (short.peak, short.resident, short.at) == (long.peak, long.resident, long.at)
    assert (short.categories, short.modules) == (long.categories, long.modules)
    assert short.timeline == long.timeline
