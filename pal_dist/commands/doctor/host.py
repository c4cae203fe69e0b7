"""The machine around the devices: versions, processors, memory, disks, names, limits."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import socket
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import psutil
import torch
from filelock import FileLock, Timeout
from packaging.requirements import Requirement

from pal_dist.commands.doctor.findings import Finding
from pal_dist.core.units import GIBIBYTE, gib

LITTLE_DISK, NO_DISK = 5 * GIBIBYTE, GIBIBYTE // 2
LITTLE_SHARED_MEMORY = GIBIBYTE // 2
LITTLE_MEMORY = 4 * GIBIBYTE
"""A process with CUDA, the libraries and a BERT takes about this much of the host."""
OPEN_FILES = 1024

CGROUP = Path("/sys/fs/cgroup")


def versions() -> Iterator[Finding]:
    """Every package that pal-dist needs, against the bounds that it was released with."""
    yield Finding("Python", "green", f"{platform.python_version()} on {platform.system()} {platform.release()}")
    for line in metadata.requires("pal-dist") or []:
        needed = Requirement(line)
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        try:
            here = metadata.version(needed.name)
        except metadata.PackageNotFoundError:
            yield Finding(needed.name, "red", "not installed", f"pip install '{needed}'")
            continue
        if needed.specifier.contains(here, prereleases=True):
            yield Finding(needed.name, "green", here)
        else:
            yield Finding(needed.name, "red", f"{here}, expected {needed.specifier}", f"pip install '{needed}'")


def processors(local_ranks: int) -> Iterator[Finding]:
    cores, threads = len(os.sched_getaffinity(0)), torch.get_num_threads()
    what = f"{cores} cores for {local_ranks} processes of {threads} threads"
    if threads * local_ranks > cores:
        cure = f"OMP_NUM_THREADS={max(1, cores // local_ranks)}; the launch scripts set it"
        yield Finding("processors", "yellow", what, cure)
    else:
        yield Finding("processors", "green", what)


def memory(local_ranks: int) -> Iterator[Finding]:
    """What the host has left, or what the job's control group allows where that is less."""
    free = psutil.virtual_memory().available
    limit, used, kills = control_group()
    what = f"{gib(free)} available"
    if limit is not None:
        free = min(free, limit - used)
        what += f"; this job may use {gib(limit)}, of which {gib(used)} are taken"
    if free < LITTLE_MEMORY * local_ranks:
        cure = "ask for more (Slurm: --mem), or start fewer processes; without offload"
        yield Finding("host memory", "yellow", f"{what}, for {local_ranks} processes", cure)
    else:
        yield Finding("host memory", "green", what)
    if kills:
        cure = "the host's memory (not the GPU's) was full: ask for more, or start fewer processes"
        yield Finding("host memory", "yellow", f"the kernel has killed {kills} processes of this job already", cure)


def control_group() -> tuple[int | None, int, int]:
    """(bytes that this control group may use, bytes it does, processes killed for want of them); None: no limit."""
    for line in Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "memory":
            folder = CGROUP / "memory" / path.lstrip("/")
            files = "memory.limit_in_bytes", "memory.usage_in_bytes", "memory.oom_control"
        elif controllers == "":
            folder = CGROUP / path.lstrip("/")
            files = "memory.max", "memory.current", "memory.events"
        else:
            continue
        limit, used, events = (_read(folder / name) for name in files)
        kills = [int(entry.split()[1]) for entry in events.splitlines() if entry.startswith("oom_kill ")]
        whole = psutil.virtual_memory().total
        if limit.isdigit() and int(limit) < whole:  # version 1 writes a huge number where there is no limit
            return int(limit), int(used or 0), sum(kills)
        if any(kills):
            return None, 0, sum(kills)
    return None, 0, 0


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def shared_memory(gpus: int) -> Iterator[Finding]:
    free = shutil.disk_usage("/dev/shm").free
    if gpus > 1 and free < LITTLE_SHARED_MEMORY:
        cure = "NCCL talks through it: give the container more (docker run --shm-size 2g; launch/kubernetes has it)"
        yield Finding("shared memory", "red", f"{gib(free)} free in /dev/shm", cure)
    else:
        yield Finding("shared memory", "green", f"{gib(free)} free in /dev/shm")


def folder(name: str, path: Path) -> Iterator[Finding]:
    """A folder that a run writes to: there, writable, with room, and with locks that work."""
    path.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(path).free
    level, cure = "green", ""
    if free < LITTLE_DISK:
        level, cure = "yellow", f"a bert-base checkpoint is about 1.3 GiB: free some space, or choose another --{name}"
    if free < NO_DISK:
        level = "red"
    try:
        with FileLock(path / ".doctor.lock", timeout=20):
            pass
        (path / ".doctor.lock").unlink(missing_ok=True)
    except (Timeout, OSError, NotImplementedError) as error:
        level, cure = "red", f"a file system that locks files, for --{name}: {error}"
    yield Finding(name, level, f"{gib(free)} free in {path}", cure)  # type: ignore[arg-type]


def names(nodes: int) -> Iterator[Finding]:
    """This machine's own name: gloo tells the others to call it by the address behind it."""
    host = socket.gethostname()
    try:
        address = socket.gethostbyname(host)
    except OSError:
        cure = f"the other processes could not reach it: a line `ADDRESS {host}` in /etc/hosts, or GLOO_SOCKET_IFNAME"
        yield Finding("host name", "red" if nodes > 1 else "yellow", f"{host} has no address", cure)
        return
    what = f"{host} is {address}"
    if nodes > 1 and address.startswith("127."):
        cure = (
            "other nodes cannot call that: export GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME (see `ip -brief address`)"
        )
        yield Finding("host name", "yellow", what, cure)
    else:
        yield Finding("host name", "green", what)


def limits() -> Iterator[Finding]:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files < OPEN_FILES:
        yield Finding("open files", "yellow", f"at most {files}", f"ulimit -n {OPEN_FILES}")
    else:
        yield Finding("open files", "green", f"at most {files:,}")
    with socket.socket() as probe:
        probe.bind(("", 0))
        yield Finding("ports", "green", f"a free one is found, such as {probe.getsockname()[1]}")
