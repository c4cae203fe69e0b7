"""The verb `convert`: the PAL authors' checkpoint as a model folder of ours."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pal_dist.commands.options import CONVERT_OPTIONS
from pal_dist.core.errors import UserError


def convert(flags: Mapping[str, str]) -> Path:
    """Convert what the flags name (CONVERT_OPTIONS, all of them); returns the model's folder. Raises UserError."""
    missing = [f"--{name}" for name in CONVERT_OPTIONS if name not in flags]
    if missing:
        raise UserError(f"convert needs {', '.join(missing)}")
    from pal_dist.models.convert import convert_files  # PyTorch, which a mistake should not wait for

    folder = Path(flags["output_dir"])
    convert_files(Path(flags["checkpoint"]), Path(flags["bert_config"]), flags["tasks"].split(","), folder)
    return folder
