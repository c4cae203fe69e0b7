"""The table of devices: memory, kernels, number formats and speeds, each with its source or called an estimate."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from pal_dist.core.errors import UserError
from pal_dist.core.suggest import nearest
from pal_dist.core.units import GIBIBYTE, MEBIBYTE
from pal_dist.distributed.hardware import Hardware
from pal_dist.distributed.precision import choose_precision

CONTEXT = int(0.6 * GIBIBYTE)
"""Estimate: CUDA context and loaded kernels of one process. (Recorded: 1,343 MiB on a V100 in 2021, before kernels were
loaded lazily: Transformers 4.27, docs/source/en/perf_train_gpu_one.mdx. No citable figure was found for newer ones.)"""

COMMUNICATION = int(0.3 * GIBIBYTE)
"""Estimate: NCCL's buffers of one process group."""


@dataclass(frozen=True)
class Device:
    """One kind of device, of which a run may have several."""

    name: str
    memory: int
    """Bytes that PyTorch reports as total; on a CPU, bytes that are available now."""
    capability: tuple[int, int] | None
    """CUDA compute capability; None: a CPU."""
    teraflops_fp32: float
    teraflops_low: float
    """Peak of dense matrix products in fp32, and in fp16 (bf16 from capability 8.0 on), 1e12 per second."""
    bandwidth: float
    """Of its memory, 1e9 bytes a second."""
    link: float
    """Between devices of one node, 1e9 bytes a second in each direction: NVLink, or PCIe where there is none."""
    network: float
    """Assumption: between nodes, of all network cards of one, 1e9 bytes a second in each direction; as in the machines
    in which clouds rent such GPUs (A100: 400 Gbit/s, T4: 50 Gbit/s)."""
    source: str
    """Where `memory` is from; speeds are the vendor's data sheets (fp32 from capability 8.0 on: with TF32 off)."""
    launch: float = 20e-6
    """Seconds that the host takes to give the device one kernel of ours, Python and PyTorch included. An estimate,
    unless the device `is_measured`: on the host of one H100 it was 55e-6."""
    is_measured: bool = False
    """Speeds are this very device's, by a measurement (memory/speed_probe.py)."""
    taken: int | None = None
    """Measured bytes that are not ours to use: CUDA's context and other processes. None: estimated."""

    @property
    def is_cpu(self) -> bool:
        return self.capability is None

    @property
    def context(self) -> int:
        """Bytes of the device that PyTorch cannot allocate."""
        if self.capability is None:
            return 0
        return CONTEXT if self.taken is None else self.taken

    @property
    def workspaces(self) -> int:
        """Bytes that cuBLAS works in, which PyTorch allocates for it: 8,519,680 for each of two threads (PyTorch issue
        95668), 32 MiB each on Hopper (CUDABlas.cpp, getChosenWorkspaceSize)."""
        if self.capability is None:
            return 0
        return 2 * (32 * MEBIBYTE if self.capability >= (9, 0) else 8_519_680)

    @property
    def communication(self) -> int:
        """Bytes that a process group takes from the device."""
        return 0 if self.is_cpu else COMMUNICATION

    @property
    def usable(self) -> int:
        """Bytes for tensors of a single process."""
        return self.memory - self.context

    @property
    def low_precision(self) -> str:
        """The low precision this device computes natively: `bf16`, `fp16`, or `fp32` where it has none; what
        `--precision auto` takes."""
        return choose_precision("auto", self.capability).name

    def attention_kernel(self, *, dtype: torch.dtype, head_width: int, masked: bool) -> str:
        """What scaled_dot_product_attention runs here: `flash`, `efficient` or `math` (sdp_utils.cpp).

        flash: from capability 8.0, half precision, no mask, heads up to 256 wide (padded to 8 by PyTorch itself).
        efficient: heads a multiple of the matrix units' alignment: 8 in half precision from capability 7.0 on (a T4), 4
        in float32 from 8.0 on, else 1. math keeps every score.
        """
        if self.capability is None or dtype == torch.float64:
            return "math"
        half = dtype in (torch.float16, torch.bfloat16)
        if dtype == torch.bfloat16 and self.capability < (8, 0):
            return "math"
        if half and self.capability >= (8, 0) and not masked and head_width <= 256:
            return "flash"
        alignment = 8 if half and self.capability >= (7, 0) else 4 if self.capability >= (8, 0) else 1
        return "efficient" if head_width % alignment == 0 else "math"


def _gpu(
    name: str,
    gibibytes: float,
    capability: tuple[int, int],
    fp32: float,
    low: float,
    bandwidth: float,
    link: float,
    network: float,
    source: str,
) -> Device:
    return Device(name, int(gibibytes * GIBIBYTE), capability, fp32, low, bandwidth, link, network, source)


_ESTIMATE = "estimate: the nominal size less what sister cards report as taken"

DEVICES: dict[str, Device] = {
    device.name: device
    for device in (
        _gpu("t4", 14.56, (7, 5), 8.1, 65, 320, 16, 6.25, "reported by PyTorch: GitHub Zheng-Chong/CatVTON issue 133"),
        _gpu("p100", 15.89, (6, 0), 9.3, 18.7, 732, 16, 4, _ESTIMATE),
        _gpu("v100-16", 15.77, (7, 0), 15.7, 125, 900, 150, 12.5, _ESTIMATE),
        _gpu(
            "v100-32", 31.74, (7, 0), 15.7, 125, 900, 150, 12.5, "reported by PyTorch: liucongg/ChatGLM-Finetuning 73"
        ),
        _gpu("a10g", 22.0, (8, 6), 31.2, 70, 600, 32, 5, _ESTIMATE),
        _gpu("l4", 22.0, (8, 9), 30.3, 121, 300, 32, 5, _ESTIMATE),
        _gpu("rtx3090", 23.5, (8, 6), 35.6, 71, 936, 32, 1.25, _ESTIMATE),
        _gpu(
            "rtx4090", 23.64, (8, 9), 82.6, 165, 1008, 32, 1.25, "reported by PyTorch: GitHub ali-vilab/VGen issue 104"
        ),
        _gpu("a100-40", 39.5, (8, 0), 19.5, 312, 1555, 300, 50, "reported by PyTorch: GitHub TianheWu/CoSeR issue 10"),
        _gpu(
            "a100-80", 79.14, (8, 0), 19.5, 312, 2039, 300, 50, "reported by PyTorch: lianqi1008/Control-GIC issue 12"
        ),
        _gpu("h100", 79.1, (9, 0), 66.9, 989, 3350, 450, 400, _ESTIMATE),
        _gpu("h200", 139.0, (9, 0), 66.9, 989, 4800, 450, 400, "estimate: about 139 GiB reported"),
    )
}
"""Kinds of GPU by the name that --gpu takes."""


def cpu_device(memory: int) -> Device:
    """This machine's processors. The speeds are estimates: about those of two cores with AVX-512."""
    return Device("cpu", memory, None, 0.15, 0.15, 20, 10, 1.25, "available memory, as the operating system reports it")


def find_device(name: str) -> Device:
    """A row of the table. Raises UserError, naming the nearest, for a kind that it lacks."""
    wanted = name.lower().replace("_", "-")
    if wanted in DEVICES:
        return DEVICES[wanted]
    like = nearest(wanted, DEVICES, cutoff=0.4)
    hint = f"; did you mean {like}?" if like else ""
    raise UserError(f"--gpu {name}: known kinds are {', '.join(DEVICES)}, cpu{hint}")


def device_at_hand(hardware: Hardware) -> Device:
    """The device that a rank runs on: its own memory and capability, speeds from the most alike row of the table."""
    if hardware.capability is None:
        return cpu_device(hardware.memory)
    name = hardware.name.lower().replace(" ", "")
    alike = (
        [device for key, device in DEVICES.items() if key.split("-")[0] in name]
        or [device for device in DEVICES.values() if device.capability == hardware.capability]
        or [DEVICES["t4"]]
    )
    nearest_row = min(alike, key=lambda device: abs(device.memory - hardware.memory))
    return replace(
        nearest_row,
        name=hardware.name,
        memory=hardware.memory,
        capability=hardware.capability,
        source="reported by the device",
        taken=hardware.taken,
    )
