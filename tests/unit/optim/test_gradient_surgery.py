"""PCGrad and GradVac from the Gram matrix, against plain loops over whole gradients and TorchJD."""

from __future__ import annotations

import pytest
import torch

from pal_dist.optim.gradient_surgery import METHODS, GradientSurgery, cosines, draw_others
from tests.support.plain_surgery import plain_gradvac, plain_pcgrad


@pytest.mark.parametrize("tasks", [2, 3, 5])
@pytest.mark.parametrize("agreement", [-3.0, 0.0, 3.0])
def test_weights_are_those_of_plain_loops(tasks: int, agreement: float) -> None:
    """Conflicting, unrelated and agreeing gradients, over steps, since GradVac remembers."""
    pulled, turned, targets = GradientSurgery("pcgrad", tasks, 7), GradientSurgery("gradvac", tasks, 7), {}
    changed = 0
    for step in range(20):
        common = torch.randn(50, dtype=torch.float64)
        signs = [(-1.0) ** task if agreement < 0 else 1.0 for task in range(tasks)]
        gradients = [sign * abs(agreement) * common + torch.randn(50, dtype=torch.float64) for sign in signs]
        matrix = torch.stack(gradients)
        gram, others = matrix @ matrix.T, draw_others(tasks, 7, step)
        expected = plain_pcgrad(gradients, others)
        torch.testing.assert_close(pulled.weights(gram, step) @ matrix, expected, rtol=0, atol=1e-10)
        expected_vac = plain_gradvac(gradients, others, targets)
        torch.testing.assert_close(turned.weights(gram, step) @ matrix, expected_vac, rtol=0, atol=1e-10)
        changed += not torch.allclose(expected, sum(gradients))
    assert (changed == 20) if agreement < 0 else (changed == 0) if agreement > 0 else changed > 0
    for (task, other), value in targets.items():
        assert turned.targets_TT[task, other].item() == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("tasks", [2, 3, 4])
def test_pcgrad_is_torchjd_s(tasks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """An implementation by others, of the same order of tasks."""
    aggregation = pytest.importorskip("torchjd.aggregation")
    gradients = torch.randn(tasks, 30, dtype=torch.float64) - torch.linspace(-1, 1, tasks)[:, None].double()
    others = draw_others(tasks, 1, 0)
    orders = iter([torch.tensor([task, *others[task]]) for task in range(tasks)])
    monkeypatch.setattr(torch, "randperm", lambda *_, **__: next(orders))
    expected = aggregation.PCGrad()(gradients)
    weights = GradientSurgery("pcgrad", tasks, 1).weights(gradients @ gradients.T, 0)
    torch.testing.assert_close(weights @ gradients, expected, rtol=0, atol=1e-10)


def test_a_task_without_gradient_and_an_overflow() -> None:
    """Neither divides by zero nor spoils what GradVac remembers."""
    gram = torch.tensor([[4.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    for kind in METHODS:
        assert GradientSurgery(kind, 2, 0).weights(gram, 0).tolist() == [1.0, 1.0]
    turned = GradientSurgery("gradvac", 2, 0)
    turned.weights(gram / 0.0, 0)
    assert turned.targets_TT.tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_cosines() -> None:
    gradients = torch.randn(3, 9, dtype=torch.float64)
    expected = torch.nn.functional.cosine_similarity(gradients[:, None], gradients[None], dim=-1)
    torch.testing.assert_close(cosines(gradients @ gradients.T), expected, rtol=0, atol=1e-12)
