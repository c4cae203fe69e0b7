"""The number format of matrix products, chosen by what the device is good at."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pal_dist.core.errors import UserError


@dataclass(frozen=True)
class Precision:
    """Number format of the model's matrix products; parameters and their gradients stay in float32."""

    name: str
    reason: str

    @property
    def dtype(self) -> torch.dtype:
        """Of matrix products."""
        return {"fp16": torch.float16, "bf16": torch.bfloat16}.get(self.name, torch.float32)


def choose_precision(asked: str, capability: tuple[int, int] | None) -> Precision:
    """The precision for a GPU of this compute capability (None: a CPU). Raises UserError where it cannot be right."""
    if asked == "fp16" and capability is None:
        raise UserError("--precision fp16 needs a GPU (on a CPU it would silently be fp32); use auto, fp32 or bf16")
    if asked == "bf16" and capability is not None and capability < (8, 0):
        major, minor = capability
        raise UserError(
            f"--precision bf16: this GPU has capability {major}.{minor} and only emulates bf16, four times slower than "
            f"fp16; use auto or fp16"
        )
    if asked != "auto":
        return Precision(asked, "asked for")
    if capability is None:
        return Precision("fp32", "no GPU")
    named = f"GPU capability {capability[0]}.{capability[1]}"
    if capability < (8, 0):
        return Precision("fp16", f"{named}: below 8.0 bf16 is only emulated")
    return Precision("bf16", f"{named}: bf16 needs no loss scaling")


class LossScale:
    """fp16's dynamic loss scale (Micikevicius et al. 2018, section 3.2): halved when a gradient overflows, doubled
    after `patience` steps without. The same on all ranks, for all strategies.

    It lives on the device, and a step is skipped there: nothing waits for the flag that tells of an overflow.
    """

    def __init__(self, scale: float = 65536.0, *, patience: int = 2000, device: torch.device | str = "cpu"):
        self.scale = torch.full((), scale, device=device)
        self.patience = patience
        self.good_steps = torch.zeros((), dtype=torch.int32, device=device)
        """Steps without overflow since the scale last changed."""

    def unscale(self, gradients: list[Tensor]) -> Tensor:
        """Divide the gradients by the scale, in place. Returns a flag on the device: 1.0 where one is not finite."""
        overflow = torch.zeros((), device=self.scale.device)
        torch._amp_foreach_non_finite_check_and_unscale_(gradients, overflow, 1.0 / self.scale)
        return overflow

    def update(self, overflow: Tensor) -> None:
        """Take note of a step, which overflowed (1.0) or did not."""
        torch._amp_update_scale_(self.scale, self.good_steps, overflow, 2.0, 0.5, self.patience)

    def state_dict(self) -> dict[str, float]:
        """Plain values; waits for the device. `fine` is the name of `good_steps` in checkpoints."""
        return {"scale": float(self.scale), "fine": int(self.good_steps)}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.scale.fill_(state["scale"])
        self.good_steps.fill_(int(state["fine"]))
