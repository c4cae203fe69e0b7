"""Few sizes serve many micro-batches, little is filled in, and what is filled in is no example."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from pal_dist.config.resolve import resolve
from pal_dist.data.batch import TextRows, pack_batch
from pal_dist.data.batching import micro_batches, pass_order
from pal_dist.data.fixed_sizes import MOST_TOKENS, size_for
from pal_dist.tasks.objectives import Binary, Classes, Score
from pal_dist.training.inputs import find_inputs, read_corpora
from pal_dist.training.pass_graphs import MOST_GRAPHS
from pal_dist.training.setup import plan_steps


def rows_of(lengths: list[int]) -> TextRows:
    own = np.array(lengths, dtype=np.int32)
    return TextRows(np.ones(own.sum(), np.int32), own, own, np.arange(len(own), dtype=np.float32))


@pytest.mark.parametrize("seed", range(20))
def test_any_rows_fit_into_their_size(seed: int) -> None:
    random = np.random.default_rng(seed)
    parts = [rows_of(random.integers(1, 129, random.integers(0, 200)).tolist()) for _ in range(3)]
    size = size_for([part.lengths for part in parts], max_length=128)
    batch = pack_batch([("sst", parts[0]), ("para", parts[1]), ("sts", parts[2])], size)
    assert batch.tokens == size.tokens == len(batch.input_ids_T)
    assert batch.lengths.min() >= 1
    assert batch.lengths.max() <= size.longest <= 128
    for segment, part, own in zip(batch.segments, parts, size.segments, strict=True):
        assert (segment.row_count, segment.tokens.stop - segment.tokens.start) == (own.rows, own.tokens)
        assert segment.examples == len(part.lengths)
        assert segment.filled_rows >= 1
        labels = batch.labels_R[segment.rows]
        assert torch.equal(labels[: segment.examples], torch.from_numpy(part.labels))
        assert labels[segment.examples :].isnan().all()
    assert batch.filled_tokens == size.tokens - sum(int(part.lengths.sum()) for part in parts)
    assert batch.examples_S.tolist() == [len(part.lengths) for part in parts]


@pytest.mark.parametrize("objective", [Classes(3), Binary(), Score(1, 5)])
def test_what_has_no_label_adds_nothing(objective: Classes | Binary | Score) -> None:
    torch.manual_seed(0)
    logits = torch.randn(7, objective.outputs, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, float("nan"), float("nan")])
    filled = objective.loss(logits, labels, has_unlabelled=True)
    alone = objective.loss(logits[:5], labels[:5])
    torch.testing.assert_close(filled, alone, rtol=1e-14, atol=0)
    (gradient,) = torch.autograd.grad(filled, logits)
    assert not gradient[5:].any()
    torch.testing.assert_close(gradient[:5], torch.autograd.grad(alone, logits)[0][:5])


@pytest.mark.parametrize("count", [1, 31, 32, 100, 1000])
def test_even_batches_are_one_pass(count: int) -> None:
    random = np.random.default_rng(count)
    lengths = random.integers(3, 129, count).astype(np.int32)
    order = pass_order(lengths, block=32, window=8, seed=(0, 0, 0), even=True)
    assert sorted(order.tolist()) == list(range(count))
    again = pass_order(lengths, block=32, window=8, seed=(0, 0, 1), even=True)
    assert count == 1 or order.tolist() != again.tolist()
    if count == 1000:
        tokens = [int(lengths[order[start : start + 32]].sum()) for start in range(0, 256, 32)]
        assert max(tokens) - min(tokens) <= 3


@pytest.mark.parametrize(
    ("batch_size", "ranks", "budget", "most_filled"),
    [
        (32, 1, 1 << 20, 0.05),
        (128, 1, 1 << 20, 0.05),
        (512, 1, 1 << 20, 0.02),
        (64, 4, 1 << 20, 0.06),
        (128, 1, 6000, 0.05),
    ],
)
def test_an_epoch_of_the_real_data_has_few_sizes(
    batch_size: int, ranks: int, budget: int, most_filled: float, shared: Path, tmp_path: Path
) -> None:
    """At most 32 graphs; 5 % of the tokens filled in at 96 rows, 2 % at 1,536."""
    flags = {"data_dir": str(shared / "data"), "batch_size": str(batch_size), "bad_rows": "skip"}
    run, _ = resolve(flags)
    corpora = list(read_corpora(run, find_inputs(run, tmp_path), progress=False).train.values())
    schedule, steps = plan_steps(run, corpora)
    schedule.even = True
    sizes: Counter[object] = Counter()
    tokens = filled = 0
    for served in schedule.steps(0, steps // run.train.epochs):
        for micro in micro_batches(served, schedule.lengths, budget=budget, rank=0, ranks=ranks, even_tasks=True):
            lengths = [schedule.lengths[task][rows] for task, rows in micro.parts]
            size = size_for(lengths, max_length=run.data.max_length)
            sizes[size] += 1
            tokens += sum(int(own.sum()) for own in lengths)
            filled += size.tokens - sum(int(own.sum()) for own in lengths)
    name = f"{batch_size} rows a task, {ranks} ranks, budget {budget}"
    print(f"{name}: {len(sizes)} sizes over {sizes.total()} micro-batches, {filled / tokens:.2%} filled in")
    assert len(sizes) <= MOST_GRAPHS
    assert filled / tokens < most_filled
    assert MOST_TOKENS > 3 * 128 * 32
