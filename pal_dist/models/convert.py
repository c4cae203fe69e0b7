"""Checkpoints of the PAL authors' program (Bert-n-Pals) under our names.

Their layout: in layer L and for task T, `multi_layers.T` (beside the layer) or `attention.output.multi_layers.T` and
`output.multi_layers.T` (inside), with `aug_dense` (down), `aug_dense2` (up) and, in a PAL, `attn`; `classifier.T`;
LayerNorms say gamma and beta. A PAL's V^E (`aug_dense`) and V^D (`aug_dense2`) are tied over the layers, so a
checkpoint may name them once or once a layer.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from pal_dist.core.atomic_io import atomic_folder
from pal_dist.core.errors import UserError
from pal_dist.models.multi_task import MultiTaskBert, MultiTaskBertConfig
from pal_dist.tasks.registry import resolve_tasks, task_to_dict

AUTHORS_HEADS = 6
"""Attention heads of a PAL in the authors' program, where they are a constant (modeling.py:298)."""

_LAYER = r"bert\.encoder\.layer\.(\d+)"

COMMON_RENAMES = (
    (r"(bert\..*LayerNorm)\.gamma", r"\1.weight"),
    (r"(bert\..*LayerNorm)\.beta", r"\1.bias"),
    (r"classifier\.(\d+)\.(.*)", r"heads.<\1>.1.\2"),
)


def _bottleneck(stem: str, name: str) -> tuple[tuple[str, str], ...]:
    return (
        (_LAYER + stem + r"\.(\d+)\.aug_dense\.(.*)", rf"adapters.<\2>.{name}.\1.down.\3"),
        (_LAYER + stem + r"\.(\d+)\.aug_dense2\.(.*)", rf"adapters.<\2>.{name}.\1.up.\3"),
    )


def _pal(stem: str) -> tuple[tuple[str, str], ...]:
    return (
        (_LAYER + stem + r"\.(\d+)\.attn\.(.*)", r"adapters.<\2>.attention.\1.\3"),
        (_LAYER + stem + r"\.(\d+)\.aug_dense\.(.*)", r"adapters.<\2>.down.\3"),
        (_LAYER + stem + r"\.(\d+)\.aug_dense2\.(.*)", r"adapters.<\2>.up.\3"),
    )


_BESIDE, _ATTENDED, _FED = r"\.multi_layers", r"\.attention\.output\.multi_layers", r"\.output\.multi_layers"

RENAMES = {
    "houlsby_plus_pal": (rf".*\d{_FED}\.\d+\.attn\..*", (*_bottleneck(_ATTENDED, "attended"), *_pal(_FED))),
    "houlsby_parallel": (rf".*\d{_FED}\.\d+\..*", (*_bottleneck(_ATTENDED, "attended"), *_bottleneck(_FED, "fed"))),
    "pal": (rf".*\d{_BESIDE}\.\d+\.attn\..*", _pal(_BESIDE)),
    "low_rank": (rf".*\d{_BESIDE}\.\d+\..*", _bottleneck(_BESIDE, "beside")),
    "lhuc": (r".*\.multi_lhuc\..*", ((_LAYER + r"\.multi_lhuc\.(\d+)\.lhuc", r"adapters.<\2>.gates.\1"),)),
    "none": (r".*", ()),
}
"""Kind of ours -> (a name that only it has, the first that matches counts; their name -> ours). <T>: task T's name."""

SAME_NAMES = (
    r"bert\.(embeddings\.(word|position|token_type)_embeddings\.weight|pooler\.dense\.(weight|bias)|encoder\.layer\.\d+\."
    r"(attention\.self\.(query|key|value)|attention\.output\.dense|intermediate\.dense|output\.dense)\.(weight|bias))"
)
"""Names that are the same in both."""


@dataclass(frozen=True)
class Converted:
    """A state dict under our names, and what its shapes tell of the model."""

    state: dict[str, Tensor]
    adapter: str
    adapter_hidden: int | None
    adapter_bottleneck: int | None
    adapter_layers: list[int] | None


def convert_state_dict(state: dict[str, Tensor], tasks: list[str]) -> Converted:
    """Rename the authors' parameters; `tasks` are our names of their tasks 0, 1, ....

    Raises UserError for a name that belongs to no kind we know, or tied parameters that differ.
    """
    top_attention = next((name for name in state if re.match(r"bert\.encoder\.(multi_layers|mult_dense)", name)), None)
    if top_attention:
        raise UserError(
            f"`{top_attention}`: their attention on top takes the encoder's place, ours is added to it: not converted"
        )
    kind = next(kind for kind, (pattern, _) in RENAMES.items() if any(re.fullmatch(pattern, name) for name in state))
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        new = _rename(name, tasks, kind)
        if new in renamed and not torch.equal(renamed[new], value):
            raise UserError(f"`{name}` should be tied over the layers, but differs between them")
        renamed[new] = value
    inside = (re.match(r"adapters\.[^.]+\.(\w+)\.(\d+)", name) for name in renamed)
    layers = sorted({int(match[2]) for match in inside if match})
    return Converted(
        renamed,
        kind,
        _width(renamed, r"down" if "pal" in kind else r"(beside|fed)\.\d+\.down"),
        _width(renamed, r"attended\.\d+\.down"),
        layers or None,
    )


def _width(renamed: dict[str, Tensor], part: str) -> int | None:
    """Width of that part of an adapter."""
    return next(
        (value.shape[0] for name, value in renamed.items() if re.fullmatch(rf"adapters\.[^.]+\.{part}\.weight", name)),
        None,
    )


def _rename(name: str, tasks: list[str], kind: str) -> str:
    for pattern, replacement in (*COMMON_RENAMES, *RENAMES[kind][1]):
        if match := re.fullmatch(pattern, name):
            new = match.expand(replacement)
            number = re.search(r"<(\d+)>", new)
            if number and int(number[1]) >= len(tasks):
                raise UserError(f"`{name}` belongs to task {number[1]}, but only {len(tasks)} tasks are named")
            return re.sub(r"<\d+>", tasks[int(number[1])], new) if number else new
    if re.fullmatch(SAME_NAMES, name):
        return name
    raise UserError(f"`{name}` is no parameter of the authors' program with adapter `{kind}`")


def convert_files(checkpoint: Path, bert_config: Path, tasks: list[str], output: Path) -> None:
    """A checkpoint file (.safetensors, or a torch state dict) and its bert_config.json -> a model folder of ours.

    Raises UserError for a file that is missing or does not fit the tasks.
    """
    for path in (checkpoint, bert_config):
        if not path.is_file():
            raise UserError(f"{path}: there is no such file")
    if checkpoint.suffix == ".safetensors":
        state = load_file(checkpoint)
    else:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    resolved = resolve_tasks(tasks)
    converted = convert_state_dict(state, [task.name for task in resolved])
    theirs = json.loads(bert_config.read_text(encoding="utf-8"))
    options = {
        name: theirs[name] for name in theirs if name in MultiTaskBertConfig().to_dict() and name != "model_type"
    }
    config = MultiTaskBertConfig(
        tasks=[task_to_dict(task) for task in resolved],
        adapter=converted.adapter,
        adapter_hidden=converted.adapter_hidden or 0,
        adapter_bottleneck=converted.adapter_bottleneck or 0,
        adapter_heads=AUTHORS_HEADS,
        adapter_layers=converted.adapter_layers,
        layer_norm_eps=1e-12,
        head_dropout=theirs.get("hidden_dropout_prob", 0.1),
        **options,
    )
    model = MultiTaskBert(config)
    own = model.state_dict()
    for name in own.keys() ^ converted.state.keys():
        raise UserError(f"{checkpoint}: `{name}` is in {'the model' if name in own else 'the file'} alone")
    for name, value in converted.state.items():
        if own[name].shape != value.shape:
            raise UserError(
                f"{checkpoint}: `{name}` has shape {tuple(value.shape)}, the task needs {tuple(own[name].shape)}"
            )
    model.load_state_dict(converted.state)
    with atomic_folder(output) as draft:
        model.save_pretrained(draft)
