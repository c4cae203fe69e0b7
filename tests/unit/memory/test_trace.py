"""Law 7: a trace on fake tensors is what real tensors allocate, and what a GPU would."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from pal_dist.memory import find_device, trace
from pal_dist.memory.allocator import CachingAllocator, reserved_bytes
from pal_dist.memory.closed_form import StepOptions
from pal_dist.memory.tracker import CATEGORIES, Tracker
from tests.support.random_runs import batch_of, build, config_of, loss_of, optimizer_of, random_run, traced

MEBIBYTE = 1 << 20

ROWS = 256
"""So many that the peak lies where all activations are alive, not at the optimizer's step."""


def real_step(model: nn.Module, optimizer: torch.optim.Optimizer, sizes: list, precision: str = "fp32") -> None:
    for size in sizes:
        batch = batch_of(*size)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = loss_of(model(batch), batch)
        (loss / len(sizes)).backward()
        del loss, batch
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize(
    ("precision", "checkpoint_layers", "optimizer"),
    list(product(("fp32", "bf16"), (0, 1, 2), ("adamw", "adamw_8bit", "paged_adamw_8bit"))),
)
def test_equals_real_allocations_on_a_cpu(precision: str, checkpoint_layers: int, optimizer: str) -> None:
    config = config_of(96, 3, 4, "pal", 48, 4, vocab_size=500)
    sizes = [(12, 64, "sst"), (8, 50, "para"), (4, 80, "sts")]
    batches = [batch_of(*size) for size in sizes]
    found = traced(config, StepOptions(precision, "sdpa", checkpoint_layers, optimizer), batches, None)
    model = build(config, checkpoint_layers).train()
    update = optimizer_of(model, optimizer)
    real_step(model, update, sizes, precision)
    with Tracker(model, granularity=1) as tracker:
        tracker.mark(existing(model, update), "parameters")
        real_step(model, update, sizes, precision)
    assert found.peak == pytest.approx(tracker.peak, rel=1e-3)
    assert sum(found.categories.values()) == found.peak


def test_the_tracker_misses_nothing_that_the_profiler_sees() -> None:
    """torch.profiler counts in the allocator itself, beneath every operation."""
    model = build(config_of(192, 3, 4, "pal", 48, 4)).train()
    update = optimizer_of(model, "adamw")
    real_step(model, update, [(16, 64)])
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        real_step(model, update, [(16, 64)])
    total = highest = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            total += event.nbytes()
            highest = max(highest, total)
    with Tracker(model, granularity=1) as tracker:
        real_step(model, update, [(16, 64)])
    assert tracker.peak - already_there(tracker, model, update) == pytest.approx(highest, rel=2e-3)


def existing(model: nn.Module, update: torch.optim.Optimizer) -> list[torch.Tensor]:
    """The tensors that are there before a step."""
    found = [*model.parameters(), *model.buffers()]
    found += [value for entries in update.state.values() for value in entries.values()]
    return [part for part in found if isinstance(part, torch.Tensor)]


def already_there(tracker: Tracker, model: nn.Module, update: torch.optim.Optimizer) -> int:
    """Bytes of what existed before the step and was only seen when an operation returned it."""
    old = {part.untyped_storage()._cdata for part in existing(model, update)}
    return sum(tracker.blocks[index].bytes for address, (index, _) in tracker._live.items() if address in old)


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


def test_a_model_without_loss_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="returns no loss"):
        trace(nn.Linear(3, 3), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="precision is one of"):
        trace(nn.Linear(3, 3), torch.zeros(2, 3), precision="int8")


def test_nothing_is_allocated() -> None:
    """A step of 100 GiB is traced on any machine."""
    config = config_of(256, 2, 4)
    found = traced(config, StepOptions("fp32", "eager"), [batch_of(1600, 512)], find_device("t4"))
    assert found.peak > 50 * (1 << 30)


class TestEmulation:
    """Each piece of CUDA's semantics by its own figure."""

    def act(self, precision: str, attention: str = "sdpa", device: str = "t4", **options: object) -> int:
        config = config_of(256, 2, 4, **options)
        return traced(config, StepOptions(precision, attention), [batch_of(ROWS, 128)], find_device(device)).categories[
            "activations"
        ]

    def test_fused_attention_keeps_no_scores(self) -> None:
        # One full layer: 4 heads' probabilities, dropout's result and its mask; the last layer asks one token only.
        kept = self.act("fp32", "eager", adapter="none") - self.act("fp32", "sdpa", adapter="none")
        scores = ROWS * 4 * 128 * 128
        assert kept == pytest.approx(scores * (4 + 4 + 1), rel=0.05)

    def test_unpadded_heads_fall_back_on_a_t4(self) -> None:
        from transformers import BertConfig, BertForSequenceClassification

        labels = {"input_ids": torch.zeros(8, 256, dtype=torch.long), "labels": torch.zeros(8, dtype=torch.long)}
        peaks = {}
        for heads in (12, 16):  # widths 17 and 16
            width = 204 if heads == 12 else 256
            config = BertConfig(
                hidden_size=width, num_hidden_layers=2, num_attention_heads=heads, intermediate_size=width
            )
            found = trace(lambda config=config: BertForSequenceClassification(config), labels, device=find_device("t4"),
                          precision="fp16")  # fmt: skip
            peaks[heads] = found.categories["activations"]
        assert peaks[12] > 2 * peaks[16]

    def test_half_precision_halves_activations_and_copies_weights(self) -> None:
        config = config_of(512, 4, 8, adapter="none")
        full, half = (
            traced(config, StepOptions(precision), [batch_of(16, 128)] * 2, find_device("t4"))
            for precision in ("fp32", "fp16")
        )
        assert 0.5 < half.categories["activations"] / full.categories["activations"] < 0.75
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


class TestAllocator:
    def test_sizes(self) -> None:
        for size, segment in ((1, 2), (MEBIBYTE, 2), (MEBIBYTE + 1, 20), (10 * MEBIBYTE, 10), (10 * MEBIBYTE + 1, 12)):
            assert reserved_bytes([(0, size)]) == segment * MEBIBYTE

    def test_freed_blocks_are_used_again_and_merge(self) -> None:
        allocator = CachingAllocator()
        for key in range(4):
            allocator.allocate(key, 5 * MEBIBYTE)
        assert allocator.reserved == 20 * MEBIBYTE
        allocator.free(1)
        allocator.free(2)
        allocator.allocate(9, 9 * MEBIBYTE)  # fits where the two were
        assert allocator.reserved == 20 * MEBIBYTE

    def test_expandable_segments_do_not_fragment(self) -> None:
        events = [(0, 8 * MEBIBYTE), (1, 30 * MEBIBYTE), (0, -8 * MEBIBYTE), (1, -30 * MEBIBYTE), (2, 38 * MEBIBYTE)]
        assert reserved_bytes(events) > reserved_bytes(events, expandable=True) == 40 * MEBIBYTE


def test_categories_are_complete() -> None:
    found = traced(config_of(128, 2, 2), StepOptions("fp16"), [batch_of(4, 32)] * 2, find_device("t4"))
    assert set(found.categories) == set(CATEGORIES)
    assert all(sum(entry.values()) <= found.peak for _, entry in found.timeline)
    assert max(sum(entry.values()) for _, entry in found.timeline) == found.peak


@pytest.mark.parametrize("seed", range(4))
def test_a_first_step_changes_no_byte_of_the_second(seed: int) -> None:
    run = random_run(seed)
    batches = [batch_of(run.rows, run.length)] * run.micro_batches
    long, short = (
        traced(run.config, run.options, batches, run.device, replay=replay) for replay in (True, False)
    )  # fmt: skip
    assert (short.peak, short.resident, short.at) == (long.peak, long.resident, long.at)
    assert (short.categories, short.modules) == (long.categories, long.modules)
    assert short.timeline == long.timeline
