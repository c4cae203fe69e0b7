"""Save and resume by parameter NAME, in safetensors; a folder is whole or not there.

A checkpoint holds trained parameters (the others come from the encoder that the run's config names), the optimizer's
state of each and the run's state. Neither data order nor dropout needs any: both are functions of (seed, step).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pal_dist.engine import Engine
from pal_dist.files import new_folder, write_json

PLAIN = "#"
KEEP = 2
"""Checkpoints kept: the last, and one before it."""


def _names(engine: Engine) -> dict[Tensor, str]:
    return {parameter: name for name, parameter in engine.model.named_parameters() if parameter.requires_grad}


def save_checkpoint(folder: Path, engine: Engine, state: dict[str, Any]) -> None:
    """Write `folder/step-N`, N being state["step"], and drop older ones. Every rank must call it.

    Raises UserError where the disk is full; earlier checkpoints stay whole.
    """
    if engine.is_main:
        names = _names(engine)
        moments: dict[str, Tensor] = {}
        for parameter, entries in engine.optimizer.state.items():
            for key, value in entries.items():
                if isinstance(value, Tensor):
                    moments[f"{names[parameter]}/{key}"] = value.contiguous()
                else:  # a plain number, marked so that it comes back as one
                    moments[f"{names[parameter]}/{key}{PLAIN}"] = torch.tensor(value)
        values = {name: parameter.data.contiguous() for parameter, name in names.items()}
        needs = sum(tensor.nbytes for group in (moments, values) for tensor in group.values())
        with new_folder(folder / f"step-{state['step']:08d}", needs=needs) as draft:
            save_file(values, draft / "parameters.safetensors")
            save_file(moments, draft / "optimizer.safetensors")
            write_json(draft / "state.json", {**state, "scaler": engine.scaler_state()})
        for old in checkpoints(folder)[:-KEEP]:
            shutil.rmtree(old, ignore_errors=True)
    engine.wait()


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / "state.json").is_file())


def load_checkpoint(path: Path, engine: Engine) -> dict[str, Any]:
    """Fill the engine's model and optimizer; returns the run's state as it was saved."""
    state: dict[str, Any] = json.loads((path / "state.json").read_text(encoding="utf-8"))
    by_name = {name: parameter for parameter, name in _names(engine).items()}
    for name, value in load_file(path / "parameters.safetensors").items():
        by_name[name].data.copy_(value)
    for key, value in load_file(path / "optimizer.safetensors").items():
        name, _, entry = key.rpartition("/")
        parameter = by_name[name]
        kept = value.item() if entry.endswith(PLAIN) else value.to(parameter.device)
        engine.optimizer.state[parameter][entry.removesuffix(PLAIN)] = kept
    engine.set_scaler_state(state.pop("scaler"))
    return state
