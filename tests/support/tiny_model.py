"""A config of a model of a few thousand parameters."""

from __future__ import annotations

from pal_dist.models.multi_task import MultiTaskBertConfig
from pal_dist.tasks.registry import TASKS, task_to_dict

TASKS_OF_THREE = ("sst", "para", "sts")


def tiny_config(adapter: str = "pal", **values: object) -> MultiTaskBertConfig:
    return MultiTaskBertConfig(
        **{
            "tasks": [task_to_dict(TASKS[name]) for name in TASKS_OF_THREE],
            "adapter": adapter,
            "adapter_hidden": 12,
            "adapter_heads": 3,
            "vocab_size": 90,
            "hidden_size": 24,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "intermediate_size": 48,
            "max_position_embeddings": 32,
            "initializer_range": 0.2,
        }
        | values
    )
