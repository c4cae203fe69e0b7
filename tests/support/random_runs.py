"""Random models, options and batches, for tests that hold one way of counting memory to another."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch

from pal_dist.config.schema import OptimizerConfig
from pal_dist.data.batch import Batch
from pal_dist.memory.closed_form import ModelShape, PackedSize, StepOptions, shape_of
from pal_dist.memory.devices import Device, find_device
from pal_dist.memory.planner import batch_of_size, loss_of_segments
from pal_dist.memory.trace import Trace, trace
from pal_dist.models.adapters import Adapter
from pal_dist.models.multi_task import MultiTaskBert, MultiTaskBertConfig
from pal_dist.optim.optimizers import build_optimizer
from pal_dist.tasks.registry import TASKS, task_to_dict

NAMES = ("sst", "para", "sts")

KINDS = ["pal", "pal", *Adapter.registry]


def config_of(
    hidden: int,
    layers: int,
    heads: int,
    adapter: str = "pal",
    width: int = 60,
    adapter_heads: int = 12,
    **options: object,
) -> MultiTaskBertConfig:
    return MultiTaskBertConfig(
        tasks=[task_to_dict(TASKS[name]) for name in NAMES],
        adapter=adapter,
        adapter_hidden=width,
        adapter_heads=adapter_heads,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        **options,
    )


def batch_of(rows: int, length: int, *tasks: str) -> Batch:
    """Rows of one length, shared evenly by the tasks (one of them unless they are named)."""
    return batch_of_size([length] * rows, tasks or NAMES[1:2])


loss_of = loss_of_segments({name: TASKS[name].objective for name in NAMES})


def build(config: MultiTaskBertConfig, checkpoint_layers: int = 0) -> MultiTaskBert:
    model = MultiTaskBert(config)
    model.checkpoint_layers = checkpoint_layers
    return model


def optimizer_of(model: torch.nn.Module, name: str) -> torch.optim.Optimizer:
    return build_optimizer(model, OptimizerConfig(optimizer=name), 1e-4)  # type: ignore[arg-type]


def shape(config: MultiTaskBertConfig) -> ModelShape:
    with torch.device("meta"):
        return shape_of(MultiTaskBert(config), config)


def traced(
    config: MultiTaskBertConfig,
    options: StepOptions,
    batches: list[Batch],
    device: Device | None,
    limit: int | None = None,
    replay: bool = False,
) -> Trace:
    return trace(
        lambda: build(config, options.checkpoint_layers),
        batches,
        loss=loss_of,
        device=device,
        precision=options.precision,
        attention=options.attention,
        limit=limit,
        optimizer=lambda model: optimizer_of(model, options.optimizer),
        replay=replay,
    )


@dataclass(frozen=True)
class RandomRun:
    config: MultiTaskBertConfig
    options: StepOptions
    device: Device
    size: PackedSize
    micro_batches: int

    @property
    def batches(self) -> list[Batch]:
        """The micro-batches of its step."""
        return [batch_of_size(self.size.lengths, NAMES[: self.size.tasks])] * self.micro_batches


def random_run(seed: int, *, layers: tuple[int, ...] = (2, 3, 4, 6)) -> RandomRun:
    chance = random.Random(seed)
    hidden = chance.choice([128, 256, 384, 512, 768])
    adapter_heads = chance.choice([4, 6, 12])
    dropout = chance.choice([0.1, 0.1, 0.0])
    depth, heads, kind = chance.choice(layers), hidden // chance.choice([32, 64]), chance.choice(KINDS)
    width = adapter_heads * chance.choice([8, 11, 16, 17])
    config = config_of(
        hidden,
        depth,
        heads,
        kind,
        width if Adapter.registry[kind].has_heads else width // 4,
        adapter_heads,
        pooling=chance.choice(["pooler", "first", "mean"]),
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    precision = chance.choice(["fp32", "fp16", "bf16"])
    options = StepOptions(
        precision,
        attention=chance.choice(["sdpa", "sdpa", "eager"]),
        checkpoint_layers=chance.choice([0, 0, 1, 2, 3]),
        optimizer=chance.choice(["adamw", "adamw", "adamw_8bit", "paged_adamw_8bit"]),
    )
    device = find_device("a100-40" if precision == "bf16" else chance.choice(["t4", "a100-40"]))
    length = chance.choice([16, 40, 64, 128, 200, 256, 512])
    rows = max(1, chance.choice([256, 1024, 4096, 8192, 16384]) // length)
    size = PackedSize(rows * length, rows, length, chance.choice([1, min(rows, 3)]))
    return RandomRun(config, options.on(device), device, size, chance.choice([1, 2]))
