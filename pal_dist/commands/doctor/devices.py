"""The devices: what they are, the number format that will be used and why, whose memory is taken, what runs on them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator

import torch

from pal_dist.commands.doctor.findings import Finding
from pal_dist.core.units import gib
from pal_dist.distributed.hardware import named_compiler
from pal_dist.distributed.precision import choose_precision
from pal_dist.models.kernel_check import check_packed_kernel
from pal_dist.models.regions import why_not_compiled

TAKEN_BY_OTHERS = 0.1
"""Share of a GPU's memory that others may hold before it is worth a word."""


def gpus(precision: str) -> Iterator[Finding]:
    built = (
        f"PyTorch {torch.__version__}, built for {'CUDA ' + torch.version.cuda if torch.version.cuda else 'processors'}"
    )
    if not torch.cuda.is_available():
        yield _no_gpu(precision, built)
        return
    yield Finding("driver", "green", f"{_driver()}; {built}, cuDNN {torch.backends.cudnn.version()}")
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        taken = total - free - torch.cuda.memory_reserved(index)
        capability = properties.major, properties.minor
        chosen = choose_precision(precision, capability)
        what = (
            f"{properties.name}, capability {properties.major}.{properties.minor}, {gib(free)} of {gib(total)} "
            f"free; {chosen.name} ({chosen.reason})"
        )
        if taken > TAKEN_BY_OTHERS * total:
            cure = "somebody else computes there: nvidia-smi names them; CUDA_VISIBLE_DEVICES chooses another GPU"
            yield Finding(f"GPU {index}", "yellow", f"{what}; {gib(taken)} taken by others", cure)
        else:
            yield Finding(f"GPU {index}", "green", what)
    yield Finding("NCCL", "green", ".".join(map(str, torch.cuda.nccl.version())))


def _no_gpu(precision: str, built: str) -> Finding:
    if shutil.which("nvidia-smi"):
        no_cuda = not torch.version.cuda
        cure = "install a PyTorch that is built for CUDA" if no_cuda else "the driver is too old, or hidden"
        return Finding("GPU", "red", f"nvidia-smi is here, but PyTorch sees no GPU; {built}", f"{cure} (pytorch.org)")
    chosen = choose_precision(precision, None)
    what = f"none: {chosen.name} ({chosen.reason}) on processors; {built}"
    return Finding("GPU", "yellow", what, "a run on processors is many times as slow")


def _driver() -> str:
    if shutil.which("nvidia-smi") is None:
        return "driver version unknown (no nvidia-smi)"
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    versions = subprocess.run(query, capture_output=True, text=True, timeout=60).stdout.split()
    return f"driver {versions[0]}" if versions else "driver version unknown"


def attention(device: torch.device, precision: str) -> Iterator[Finding]:
    """The packed kernel that attention takes here, held against the plain form: heads of BERT's, heads of a PAL's."""
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    chosen = choose_precision(precision, capability)
    for owner, width in {"BERT": 64, "a PAL": 17}.items():
        kernel, problem = check_packed_kernel(device, chosen.dtype, heads=12, head_width=width)
        what = f"{kernel}, in {chosen.name}, as the plain form" if kernel != "by_length" else "the plain form"
        check = f"attention of {owner}"
        if problem:
            cure = "`by_length` is right and slower; another PyTorch or driver may bring the kernel back"
            yield Finding(check, "yellow", f"{what}; {problem}", cure)
        else:
            yield Finding(check, "green", what)


def eight_bit_optimizers(device: torch.device) -> Iterator[Finding]:
    """A real step of each 8-bit optimizer: the library loads, and its kernels are built for this device."""
    for name, kind in {"adamw_8bit": "AdamW8bit", "paged_adamw_8bit": "PagedAdamW8bit"}.items():
        if kind.startswith("Paged") and device.type == "cpu":
            yield Finding(name, "green", "paged memory needs a GPU; on processors it is adamw_8bit")
            continue
        try:
            moved = _step(kind, device)
        except Exception as error:  # libraries for other CUDA versions fail in many ways
            what = f"{type(error).__name__}: {error}".split("\n")[0][:200]
            yield Finding(name, "yellow", what, "use --optimizer adamw, or: python -m bitsandbytes")
            continue
        cure = "" if moved else "its step changed nothing: use --optimizer adamw"
        yield Finding(name, "green" if moved else "red", f"bitsandbytes' {kind} steps on {device.type}", cure)


def _step(kind: str, device: torch.device) -> bool:
    import bitsandbytes

    weight = torch.nn.Parameter(torch.ones(64, 128, device=device))  # small tensors stay in 32 bits: 4,096 and more
    weight.grad = torch.ones_like(weight)
    optimizer = getattr(bitsandbytes.optim, kind)([weight], lr=0.1)
    optimizer.step()
    return bool((weight != 1).all())


def compilers(device: torch.device) -> Iterator[Finding]:
    """No strategy compiles an operation; `--compile` has layers compiled, which only makes them faster."""
    here = ", ".join(name for name in ("g++", "nvcc", "ninja") if shutil.which(name)) or "none"
    missing = why_not_compiled(device, named_compiler())
    if missing and device.type == "cuda":
        lacking, _, cure = missing.rstrip(")").partition(" (")
        what = f"layers cannot be compiled: {lacking} ({here} here)"
        yield Finding("compilers", "yellow", what, f"for --compile alone: {cure}")
    else:
        yield Finding("compilers", "green", f"none is needed but for --compile ({here} here)")
