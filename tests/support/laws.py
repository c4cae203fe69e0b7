"""Laws as functions, to be called for every kind there is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pal_dist.data.batch import Batch, TextRows, pack_batch
from pal_dist.models.multi_task import MultiTaskBert


def random_rows(model: MultiTaskBert, task: str, lengths: Sequence[int]) -> TextRows:
    """Rows of these lengths with token ids at random, a pair boundary in the middle, and labels."""
    outputs = model.config.task_table()[task].objective.outputs
    return TextRows(
        tokens=torch.randint(5, model.config.vocab_size, (sum(lengths),)).numpy(),
        lengths=np.array(lengths, dtype=np.int32),
        first_lengths=np.array([(length + 1) // 2 for length in lengths], dtype=np.int32),
        labels=torch.randint(0, max(outputs, 2), (len(lengths),)).float().numpy(),
    )


def random_batch(model: MultiTaskBert, task: str, *, rows: int = 4, longest: int = 12) -> Batch:
    """Rows of falling length, two of each; none shorter than 3."""
    return pack_batch([(task, random_rows(model, task, [max(3, longest - row // 2 * 3) for row in range(rows)]))])


def loss_of(model: MultiTaskBert, batch: Batch) -> Tensor:
    """The summed loss of all segments."""
    tasks = model.config.task_table()
    losses = [
        tasks[segment.task].objective.loss(logits, batch.labels_R[segment.rows])
        for segment, logits in zip(batch.segments, model(batch), strict=True)
    ]
    return torch.stack(losses).sum()


def assert_identity_at_birth(model: MultiTaskBert, plain: MultiTaskBert) -> None:
    """A new adapter does not change what the encoder gives. `plain` has the same encoder and heads and no adapter.

    In float64 to its last digits: with an adapter that reads all tokens the last layer's products have other shapes.
    """
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("adapters")})
    model.double().eval(), plain.double().eval()
    for task in model.heads:
        batch = random_batch(model, task)
        torch.testing.assert_close(model(batch)[0], plain(batch)[0], rtol=0, atol=1e-13)


def assert_everything_moves(model: MultiTaskBert) -> None:
    """After two steps on all tasks every trained parameter has moved.

    Key biases are left out: softmax does not see a constant added to a row, so their gradient is zero by mathematics.
    """
    model.train()
    before = {name: value.clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0)
    for _ in range(2):
        rows = [max(3, 12 - row // 2 * 3) for row in range(4)]
        loss_of(model, pack_batch([(task, random_rows(model, task, rows)) for task in model.heads])).backward()
        optimizer.step()
        optimizer.zero_grad()
    still = [name for name, value in model.named_parameters() if torch.equal(value, before[name])]
    assert [name for name in still if "key.bias" not in name] == []


def assert_tasks_apart(model: MultiTaskBert) -> None:
    """One task's rows never touch another task's adapter or head: no gradient where a batch has none of its rows, and
    where tasks are packed together the gradient that its own rows give."""
    model.train()
    tasks = list(model.heads)
    lengths = [9, 9, 5]
    parts = {task: random_rows(model, task, lengths) for task in tasks}
    dropouts = [module for module in model.modules() if hasattr(module, "p") or hasattr(module, "dropout")]
    for module in dropouts:  # masks would differ
        if isinstance(getattr(module, "p", None), float):
            module.p = 0.0
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    alone: dict[str, Tensor | None] = {}
    for task in tasks:
        model.zero_grad(set_to_none=True)
        loss_of(model, pack_batch([(task, parts[task])])).backward()
        for other in tasks:
            touched = [name for name, value in model.task_parts()[other].named_parameters() if value.grad is not None]
            assert bool(touched) == (other == task), (task, other, touched)
        alone |= {
            f"{task}.{name}": None if value.grad is None else value.grad.clone()
            for name, value in model.task_parts()[task].named_parameters()
        }
    model.zero_grad(set_to_none=True)
    loss_of(model, pack_batch(list(parts.items()))).backward()
    for task in tasks:
        for name, value in model.task_parts()[task].named_parameters():
            expected = alone[f"{task}.{name}"]
            assert (value.grad is None) == (expected is None), (task, name)
            if expected is not None:
                torch.testing.assert_close(value.grad, expected, rtol=1e-4, atol=1e-6, msg=f"{task}.{name}")


def assert_no_batch_mates(model: MultiTaskBert, tolerance: float = 1e-5) -> None:
    """An example's logits do not depend on what it is packed with: rows of its task, rows of others."""
    model.eval()
    lengths = [12, 12, 7, 5]
    parts = {task: random_rows(model, task, lengths) for task in model.heads}
    for segment_logits, (task, rows) in zip(model(pack_batch(list(parts.items()))), parts.items(), strict=True):
        ends = np.cumsum(rows.lengths)
        for row, (end, length) in enumerate(zip(ends, rows.lengths, strict=True)):
            one = slice(row, row + 1)
            alone = TextRows(
                rows.tokens[end - length : end], rows.lengths[one], rows.first_lengths[one], rows.labels[one]
            )
            torch.testing.assert_close(
                model(pack_batch([(task, alone)]))[0][0], segment_logits[row], rtol=tolerance, atol=tolerance
            )
