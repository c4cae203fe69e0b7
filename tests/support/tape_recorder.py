"""A recorder that does on a CPU what a CUDA graph does on a GPU: the same operators on the same memory, nothing else.

No line of Python of the pass runs in a replay. So whatever a pass takes from the host, and not from its fixed buffers,
stays as it was in the recording, and a test sees it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from pal_dist.data.batch import Batch
from pal_dist.training.graph_recorder import Work

Call = tuple[Any, Any, Any, list[torch.Tensor]]


class _Tape(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        assert func._schema.name not in ("aten::_local_scalar_dense", "aten::nonzero"), f"{func} waits for the device"
        if not func.is_view:
            outputs = [value for value in tree_flatten(result)[0] if isinstance(value, torch.Tensor)]
            self.calls.append((func, args, kwargs or {}, outputs))
        return result


class TapeRecorder:
    """Every tensor of a recording stays where it is, as in a graph's pool."""

    def __init__(self) -> None:
        self.recorded = self.replays = 0

    def record(self, work: Work, batch: Batch) -> Work:
        with _Tape() as tape:
            work(batch)
        self.recorded += 1

        def replay(_: Batch) -> None:
            self.replays += 1
            with torch.no_grad():
                for func, args, kwargs, outputs in tape.calls:
                    again = [v for v in tree_flatten(func(*args, **kwargs))[0] if isinstance(v, torch.Tensor)]
                    for place, value in zip(outputs, again, strict=True):
                        if place.data_ptr() != value.data_ptr():
                            place.copy_(value)

        return replay
