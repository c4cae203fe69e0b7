"""Two real processes with gloo between them, forked from a server that has the libraries loaded already."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import pickle
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

SECONDS = 300
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        "setuptools",
        "tokenizers",
        "torch",
        "torch._dynamo",
        "torch.distributed.fsdp",
        "torch.utils.tensorboard",
        "matplotlib.figure",
        "matplotlib.backends.backend_agg",
        "accelerate",
        "transformers.models.bert",
        "deepspeed",
        "deepspeed.runtime.zero.muon.muon_optimizer",
        "deepspeed.module_inject.auto_ep_layer",
        "pal_dist.training.setup",
        "pal_dist.distributed.zero",
        "pal_dist.distributed.fsdp2",
        "tests.support.ranks",
        "tests.support.preloaded",
    ]
)


def in_parallel(function: Callable[[Any], Any], items: Iterable[Any], *, processes: int = 2) -> list[Any]:
    """`function` of each item, in the items' order; the function must be importable."""
    with _context.Pool(processes, initializer=_one_thread) as pool:
        return pool.map(function, items)


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Died:
    """A rank that ended without an answer: killed (-9), or by the watchdog's own code."""

    code: int
    said: str


def _start(
    rank: int, ranks: int, port: int, result: Path, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    if ranks > 1:
        world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in world.items()}, MASTER_ADDR="127.0.0.1")
    os.environ["OMP_NUM_THREADS"] = "1"
    os.dup2(os.open(result.with_suffix(".said"), os.O_WRONLY | os.O_CREAT), 2)
    faulthandler.enable(2)  # a crash inside a library's own thread says where this rank was
    import torch

    torch.set_num_threads(1)
    try:
        answer: Any = function(*arguments)
    except BaseException as error:
        traceback.print_exc()
        answer = error if isinstance(error, (ValueError, SystemExit)) else RuntimeError(traceback.format_exc())
    result.write_bytes(pickle.dumps(answer))
    until = time.monotonic() + 20
    others = [result.with_name(str(other)) for other in range(ranks)]
    while not isinstance(answer, BaseException) and time.monotonic() < until and not all(map(Path.exists, others)):
        time.sleep(0.02)  # rank 0 holds the store, without which the others' watchdogs end them


def run_ranks(function: Callable[..., Any], *arguments: Any, ranks: int = 2, survivors: bool = False) -> list[Any]:
    """`function(*arguments)` on every rank; their answers in rank order. An exception is an answer too.

    Every call has processes of its own. A second run in the same ones would save 0.1 s of processor time, but after
    one under ZeRO or FSDP2 it cannot join: they hold on to their group's store (measured, November 2026).

    The function must be importable (module level). Raises TimeoutError instead of hanging; with `survivors`, ranks that
    still run when the first one has ended are killed.
    """
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        results = [Path(folder) / str(rank) for rank in range(ranks)]
        workers = [
            _context.Process(target=_start, args=(rank, ranks, port, results[rank], function, arguments))
            for rank in range(ranks)
        ]
        begun = time.monotonic()
        for worker in workers:
            worker.start()
        if survivors:
            wait([worker.sentinel for worker in workers], SECONDS)
        for worker in workers:
            worker.join(0.1 if survivors else max(0.1, begun + SECONDS - time.monotonic()))
        hung = [worker for worker in workers if worker.is_alive()]
        for worker in hung:
            worker.kill()
            worker.join()
        if hung and not survivors:
            raise TimeoutError(f"{len(hung)} of {ranks} ranks did not end within {SECONDS} s")
        answers: list[Any] = []
        for worker, result in zip(workers, results, strict=True):
            said = result.with_suffix(".said").read_text(errors="replace")
            print(said, file=sys.stderr)
            answers.append(pickle.loads(result.read_bytes()) if result.exists() else Died(worker.exitcode, said))
        return answers
