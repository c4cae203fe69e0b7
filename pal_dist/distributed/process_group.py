"""The processes of a run: how they find each other, vote and agree. (Who notices a lost one: watchdog.py.)

All of it goes over the processors (gloo and a key-value store), so it neither waits for a device nor takes its memory.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import distributed
from torch.distributed import HashStore, PrefixStore, TCPStore  # type: ignore[attr-defined]

from pal_dist.core.errors import RankLostError, UserError
from pal_dist.distributed.launcher_checks import batch_job_of, check_devices, check_nodes, check_ranks
from pal_dist.distributed.watchdog import TICK_SECONDS, Watchdog, first_line

JOIN_SECONDS = 300
"""How long processes wait for each other at the start of a run: nodes of a cluster do not start at once."""

CONNECTION_LOST = ("Connection closed by peer", "Connection reset", "Broken pipe", "gloo/transport", "NCCL", "Socket")
"""What libraries say when the other end of a connection is gone."""


class ProcessGroup:
    """The other ranks. With one process everything here is a formality."""

    def __init__(self) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self.ranks = int(os.environ.get("WORLD_SIZE", "1"))
        self.local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        self.local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        self.job = batch_job_of(os.environ)
        """The batch system's names for this run; empty without one."""
        self.store: Any = None
        self.watchdog: Watchdog | None = None
        check_ranks(os.environ, self.ranks)
        check_devices(os.environ, torch.cuda.device_count())
        if self.ranks > 1:
            self._join()

    def _join(self) -> None:
        """Raises UserError, where ranks are missing or were promised different numbers of them."""
        if distributed.is_initialized():
            raise UserError("this process already belongs to a process group: start pal-dist in a process of its own")
        host, port = os.environ.get("MASTER_ADDR", "127.0.0.1"), int(os.environ.get("MASTER_PORT", "29500"))
        serves = self.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"  # else the launcher does
        wait = timedelta(seconds=JOIN_SECONDS)
        try:
            store = TCPStore(host, port, is_master=serves, timeout=wait, wait_for_workers=False)
        except RuntimeError as error:
            raise UserError(
                f"rank {self.rank} of {self.ranks}: no meeting at {host}:{port}: {first_line(error)}"
            ) from None
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self.store = PrefixStore(f"pal_dist/{attempt}", store)
        self.store.set(f"promised/{self.rank}", str(self.ranks))
        self._compare_promises()
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        if torch.cuda.is_available():
            torch.cuda.set_device(self.local_rank)
        distributed.init_process_group(backend, store=self.store, rank=self.rank, world_size=self.ranks)
        self.voters = distributed.new_group(backend="gloo")

    def _compare_promises(self) -> None:
        """Every rank says how many it was promised; a rank outside of the others' number is looked for too."""
        promised: dict[int, int] = {}
        end = time.monotonic() + JOIN_SECONDS
        while len(promised) < self.ranks and time.monotonic() < end:
            for rank in range(self.ranks + 8):
                if rank not in promised and self.store.check([f"promised/{rank}"]):
                    promised[rank] = int(self.store.get(f"promised/{rank}"))
            if any(value != self.ranks for value in promised.values()):
                break
            time.sleep(0.05)
        differing = {rank: value for rank, value in promised.items() if value != self.ranks}
        if differing or len(promised) < self.ranks:
            time.sleep(1.0)  # the others read the store as well, which ends with rank 0
            promises = ", ".join(f"rank {rank} was promised {value}" for rank, value in sorted(promised.items()))
            missing = [str(rank) for rank in range(self.ranks) if rank not in promised]
            raise UserError(
                f"the processes were not promised the same number of ranks: {promises}"
                + (f"; rank {', '.join(missing)} never came" if missing else "")
                + ". Give every process the same --num_processes"
            )

    def check_all_nodes_used(self) -> None:
        """Raises UserError where the batch job has nodes that this run does not use."""
        check_nodes(os.environ, self.ranks, self.local_ranks)

    def init_alone(self) -> None:
        """A process group of one, for engines that want a group."""
        for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}.items():
            os.environ.setdefault(name, value)  # DeepSpeed asks for what a launcher would have set
        if not distributed.is_initialized():
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            distributed.init_process_group(backend, store=HashStore(), rank=0, world_size=1)

    def vote(self, flag: int) -> int:
        """The highest flag of all ranks, on every rank."""
        if self.ranks == 1:
            return flag
        ballot = torch.tensor(flag)
        distributed.all_reduce(ballot, op=distributed.ReduceOp.MAX, group=self.voters)
        return int(ballot)

    def gather(self, item: Any) -> list[Any]:
        """Every rank's item, in rank order, on every rank."""
        if self.ranks == 1:
            return [item]
        gathered: list[Any] = [None] * self.ranks
        distributed.all_gather_object(gathered, item, group=self.voters)
        return gathered

    def agree(self, fingerprint: int, request: int, describe: Callable[[], str]) -> int:
        """All ranks are about to do the same; the highest request of all of them.

        Args:
            fingerprint: of what this rank is about to do (63 bits).
            request: what this rank asks for.
            describe: the same in words, called only where ranks differ.

        Raises UserError, on every rank, naming each rank's words, where the fingerprints differ (law 9).
        """
        if self.ranks == 1:
            return request
        mine = torch.tensor([fingerprint, request])
        seen = [torch.empty_like(mine) for _ in range(self.ranks)]
        distributed.all_gather(seen, mine, group=self.voters)
        if any(int(other[0]) != fingerprint for other in seen):
            by_rank = self.gather(describe())
            lines = "\n".join(f"  rank {rank}: {step}" for rank, step in enumerate(by_rank))
            raise UserError(f"the ranks are about to do different things, so all of them stop:\n{lines}")
        return max(int(other[1]) for other in seen)

    def start_watchdog(self, hang_seconds: float) -> None:
        """Begin to watch the other ranks and to be watched; `hang_seconds` without progress end the run."""
        if self.ranks > 1:
            self.watchdog = Watchdog(self.store, self.rank, self.ranks, hang_seconds)

    def report_progress(self, doing: str) -> None:
        """What this rank is doing now, for the others to name if it stops."""
        if self.watchdog is not None:
            self.watchdog.doing, self.watchdog.last_progress = doing, time.monotonic()

    @contextmanager
    def explain_lost_ranks(self) -> Iterator[None]:
        """Turn a collective's broken connection into words: the watchdog's, who may know more, or a UserError."""
        try:
            yield
        except RuntimeError as error:
            if self.ranks == 1 or not any(sign in str(error) for sign in CONNECTION_LOST):
                raise
            if self.watchdog is not None:
                time.sleep(6 * TICK_SECONDS)
            raise RankLostError(
                f"rank {self.rank}: another rank is gone ({first_line(error)}); its own output says why. The last "
                f"checkpoint is whole: run the same command again to resume"
            ) from None

    def abort(self, code: int, reason: str) -> None:
        """Tell the other ranks, which may be waiting for this one in a collective, to end with this exit code."""
        if self.watchdog is not None:
            self.watchdog.abort(code, reason)

    def leave(self) -> None:
        if self.watchdog is not None:
            self.watchdog.stop()
            self.watchdog = None
        if distributed.is_initialized():
            distributed.destroy_process_group()
        self.store = None  # rank 0 gives its port back
