"""A finished model for others: `save_pretrained`, tokenizer, one small file per task, and a card with its results."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from pal_dist.core.atomic_io import atomic_folder
from pal_dist.core.errors import UserError
from pal_dist.models.multi_task import MultiTaskBert, task_values
from pal_dist.tasks.registry import task_to_dict

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


def export_model(
    model: MultiTaskBert,
    folder: Path,
    *,
    values: Mapping[str, Tensor],
    source: Path,
    card: dict[str, Any],
    counts: dict[str, int],
    metrics: dict[str, dict[str, float]],
) -> None:
    """Write a model folder, taking the place of an older one only when it is whole.

    Args:
        values: the model's whole state, wherever its parameters are.
        source: the folder whose tokenizer goes along.
        card: settings that the model card shows, and `synthetic`, whether the training text was made up.
        counts: parameters by part.
        metrics: dev metrics by task.

    Raises UserError where the disk is full.
    """
    with atomic_folder(folder, needs=sum(tensor.nbytes for tensor in values.values())) as draft:
        model.save_pretrained(draft, state_dict=dict(values))
        for name in TOKENIZER_FILES:
            if (source / name).is_file():
                shutil.copy(source / name, draft / name)
        (draft / "tasks").mkdir()
        for task in model.heads:
            state = {name: value.contiguous() for name, value in task_values(values, task).items()}
            save_file(state, draft / "tasks" / f"{task}.safetensors", metadata={"task": task})
        (draft / "README.md").write_text(model_card(model, card, counts, metrics), encoding="utf-8")


def saved_task_parts(folder: Path, tasks: Sequence[str]) -> dict[str, Tensor]:
    """Adapters and heads of these tasks as an exported model has them. Raises UserError where one is not there."""
    values: dict[str, Tensor] = {}
    for task in tasks:
        file = folder / "tasks" / f"{task}.safetensors"
        if not file.is_file():
            raise UserError(f"{file}: expected the part of `{task}` that this run has kept so far; put it back")
        values |= load_file(file)
    return values


def model_card(
    model: MultiTaskBert, card: dict[str, Any], counts: dict[str, int], metrics: dict[str, dict[str, float]]
) -> str:
    """The card in the hub's format: yaml head, what it is, results, how to use it."""
    head = yaml.safe_dump({"library_name": "pal-dist", "tags": ["multi-task", "bert", *model.heads], "language": "en"})
    lines = ["---", head.strip(), "---", "", f"# {', '.join(model.heads)}: one BERT, one adapter and head per task", ""]
    if card.get("synthetic"):
        lines += ["Trained on **synthetic** text made by pal-dist: the scores below say nothing about real data.", ""]
    lines += ["| task | " + "metric | dev |", "|---|---|---|"]
    lines += [f"| {task} | {name} | {value:.4f} |" for task, entry in metrics.items() for name, value in entry.items()]
    lines += ["", "| part | parameters |", "|---|---|"]
    lines += [f"| {name} | {count:,} |" for name, count in counts.items() if name != "trained"]
    lines += ["", "| setting | value |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in card.items()]
    first = next(iter(model.heads))
    objective = task_to_dict(model.config.task_table()[first])["objective"]
    lines += [
        "",
        "```python",
        "from pal_dist.models.multi_task import MultiTaskBert",
        "",
        'model = MultiTaskBert.from_pretrained("this folder")',
        "```",
        "",
        f'`pal-dist predict --model THIS_FOLDER --task {first} --text "..."` asks it ({first}: {objective}).',
        "",
        "`tasks/NAME.safetensors` hold one task's adapter and head alone: `model.load_task(file, NAME)` puts them in.",
    ]
    return "\n".join(lines) + "\n"
