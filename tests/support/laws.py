"""Laws as functions, to be called for every kind there is."""

from __future__ import annotations

import torch

from pal_dist.data.batch import Batch
from pal_dist.models.multi_task import MultiTaskBert


def random_batch(model: MultiTaskBert, task: str, *, rows: int = 4, width: int = 12, padded: bool = True) -> Batch:
    """Token ids, a pair boundary in the middle, and (padded) rows of falling length."""
    ids = torch.randint(5, model.config.vocab_size, (rows, width))
    mask = torch.ones(rows, width, dtype=torch.bool)
    for row in range(rows if padded else 0):
        mask[row, width - row * 2 :] = row == 0
    types = (torch.arange(width) >= width // 2).long().expand(rows, width) * mask
    outputs = model.config.task_table()[task].objective.outputs
    labels = torch.randint(0, max(outputs, 2), (rows,)).float()
    return Batch(task, ids.where(mask, 0), types, mask if padded else None, labels, int(mask.sum()))


def assert_identity_at_birth(model: MultiTaskBert, plain: MultiTaskBert) -> None:
    """A new adapter does not change what the encoder gives. `plain` has the same encoder and heads and no adapter.

    In float64 to its last digits: with an adapter that reads all tokens the last layer's products have other shapes.
    """
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("adapters")})
    model.double().eval(), plain.double().eval()
    for task in model.heads:
        batch = random_batch(model, task)
        torch.testing.assert_close(model(batch), plain(batch), rtol=0, atol=1e-13)


def assert_everything_moves(model: MultiTaskBert) -> None:
    """After two steps on all tasks every trained parameter has moved.

    Key biases are left out: softmax does not see a constant added to a row, so their gradient is zero by mathematics.
    """
    model.train()
    before = {name: value.clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0)
    for _ in range(2):
        for task in model.heads:
            batch = random_batch(model, task)
            model.config.task_table()[task].objective.loss(model(batch), batch.labels_B).backward()
        optimizer.step()
        optimizer.zero_grad()
    still = [name for name, value in model.named_parameters() if torch.equal(value, before[name])]
    assert [name for name in still if "key.bias" not in name] == []


def assert_tasks_apart(model: MultiTaskBert) -> None:
    """One task's batch never touches another task's adapter or head: no gradient, bit-unchanged by a step."""
    model.train()
    tasks = list(model.heads)
    for task in tasks:
        model.zero_grad(set_to_none=True)
        batch = random_batch(model, task)
        model.config.task_table()[task].objective.loss(model(batch), batch.labels_B).backward()
        for other in tasks:
            touched = [name for name, value in model.task_parts()[other].named_parameters() if value.grad is not None]
            assert bool(touched) == (other == task), (task, other, touched)


def assert_no_batch_mates(model: MultiTaskBert, tolerance: float = 1e-5) -> None:
    """An example's logits do not depend on what it is batched with, nor on the padding that brings."""
    model.eval()
    for task in model.heads:
        batch = random_batch(model, task)
        together = model(batch)
        assert batch.mask_BL is not None
        for row in range(len(together)):
            length = int(batch.mask_BL[row].sum())
            part = slice(row, row + 1)
            alone = Batch(
                task,
                batch.input_ids_BL[part, :length],
                batch.token_type_ids_BL[part, :length],
                None,
                batch.labels_B[part],
                length,
            )
            torch.testing.assert_close(model(alone)[0], together[row], rtol=tolerance, atol=tolerance)
