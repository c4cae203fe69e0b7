"""Out of memory at a place and a micro-step of one's choice."""

from __future__ import annotations

from typing import Any

import torch

from pal_dist.training.trainer import Trainer

FAULTY_STEP = 2


def full(*_: Any) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ... (injected)")


def arm(trainer: Trainer, place: str, micro_step: str) -> None:
    """Raise out of memory once, in one step, at the place and the first or last micro-step."""
    engine, model = trainer.engine, trainer.engine.model
    layers = model.get_submodule("bert.encoder.layer")
    served = next(trainer.run.schedule.steps(FAULTY_STEP, FAULTY_STEP + 1))
    wanted = 0 if micro_step == "first" else len(trainer.run.micro_batches(served)) - 1
    state = {"passes": -1, "armed": True}

    def fail_once(*_: Any) -> None:
        if trainer.state.step == FAULTY_STEP and state["armed"] and state["passes"] == wanted:
            state["armed"] = False
            full()

    def count(*_: Any) -> None:
        state["passes"] += trainer.state.step == FAULTY_STEP

    model.register_forward_pre_hook(count)
    if place == "forward":
        layers[1].register_forward_pre_hook(fail_once)
    elif place == "backward":
        layers[0].register_full_backward_pre_hook(fail_once)
    elif place == "all-reduce":
        reduce = torch.distributed.all_reduce

        def faulty(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if tensor.numel() > 1:
                state["passes"] = wanted
                fail_once()
            return reduce(tensor, *args, **kwargs)

        torch.distributed.all_reduce = faulty
    elif place == "optimizer":
        state["passes"] = wanted
        model.register_forward_pre_hook(lambda *_: state.update(passes=wanted))
        engine.optimizer.register_step_pre_hook(fail_once)
