"""The examples of CONTRIBUTING.md and the README's adapter, run as they stand there."""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from pal_dist import cli
from pal_dist.config.recipes import read_recipe
from pal_dist.config.resolve import resolve
from pal_dist.distributed.strategy import read_strategy
from pal_dist.models.adapters import Adapter
from pal_dist.models.multi_task import MultiTaskBert, MultiTaskBertConfig
from pal_dist.tasks import objectives, registry
from tests.support.laws import assert_everything_moves, assert_identity_at_birth, assert_no_batch_mates
from tests.support.paths import README, ROOT

PAGE = ROOT / "CONTRIBUTING.md"


def example(path: str) -> str:
    """The block of CONTRIBUTING.md that begins with this path as a comment."""
    (block,) = re.findall(rf"```(?:python|yaml)\n(# {re.escape(path)}\n.*?)```", PAGE.read_text(), re.DOTALL)
    return str(block)


def test_every_example_is_tried() -> None:
    tried = set(re.findall(r'example\("(.*?)"\)', Path(__file__).read_text()))
    assert set(re.findall(r"```(?:python|yaml)\n# (\S+)\n", PAGE.read_text())) == tried


def test_a_task() -> None:
    task = eval(example("pal_dist/tasks/registry.py"), vars(registry))
    written = registry.task_to_dict(task)
    assert registry.task_from_dict(written, where="here") == task


def test_an_objective() -> None:
    names = dict(vars(objectives))
    exec(example("pal_dist/tasks/objectives.py"), names)
    count = names["Count"]()
    assert count.parse("3") == 3
    with pytest.raises(ValueError, match="expected a whole number from 0, found '-1'"):
        count.parse("-1")
    logits, labels = torch.randn(6, count.outputs), torch.arange(6.0)
    alone = sum(count.loss(logits[i : i + 1], labels[i : i + 1]) for i in range(6))
    torch.testing.assert_close(count.loss(logits, labels), alone)
    torch.testing.assert_close(count.loss(logits, labels, has_unlabelled=True), alone)  # as training may call it
    best = np.log1p(labels).mean().expand(6, 1)
    assert float(count.loss(best, labels)) / 6 == pytest.approx(count.constant_loss(labels.numpy()))
    np.testing.assert_allclose(count.predict(labels.log1p()[:, None].numpy()), labels, rtol=1e-5)
    assert count.metrics(np.arange(6.0), labels.numpy())[count.metric_names[0]] == pytest.approx(1)


@pytest.fixture
def shift() -> Iterator[str]:
    """The README's adapter."""
    (block,) = re.findall(r"```python\n(.*?class Shift\(.*?)```", README.read_text(), re.DOTALL)
    exec(block, {"__name__": "example"})
    yield "shift"
    del Adapter.registry["shift"]


def test_an_adapter(shift: str) -> None:
    def build(adapter: str) -> MultiTaskBert:
        tasks = [registry.task_to_dict(registry.TASKS[name]) for name in ("sst", "sts")]
        size = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
        return MultiTaskBert(MultiTaskBertConfig(tasks=tasks, adapter=adapter, vocab_size=50, **size))

    assert_identity_at_birth(build(shift), build("none"))
    assert_everything_moves(build(shift))
    assert_no_batch_mates(build(shift))


def test_a_strategy(tmp_path: Path) -> None:
    path = tmp_path / "zero1_node.yaml"
    path.write_text(example("accelerate_configs/zero1_node.yaml"))
    strategy = read_strategy(str(path))
    assert (strategy.name, strategy.kind, strategy.stage) == ("zero1_node", "zero", 1)


def test_a_verb(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    module = types.ModuleType("pal_dist.commands.adapters")
    exec(example("pal_dist/commands/adapters.py"), vars(module))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    names = dict(vars(cli))
    exec(example("pal_dist/cli.py"), names)
    monkeypatch.setitem(cli.VERBS, "adapters", cli.Verb(names["adapters"]))
    cli.main(["adapters"])
    assert "pal_dist.models.adapters.lora" in capsys.readouterr().out
    cli.main(["--help"])
    assert "List the adapters" in capsys.readouterr().out


def test_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "sst_two_epochs.yaml"
    path.write_text(example("pal_dist/config/recipes/sst_two_epochs.yaml"))
    assert "estimate" in read_recipe(str(path)).about.time
    run, _ = resolve({}, recipe=str(path))
    assert run.data.tasks == ("sst",)
    assert run.train.epochs == 2
