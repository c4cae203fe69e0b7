"""One process alone: voting, gathering and agreeing are formalities. (Two: tests/ranks/test_together.py.)"""

from __future__ import annotations

import pytest

from pal_dist.distributed.process_group import ProcessGroup


def test_alone() -> None:
    group = ProcessGroup()
    assert (group.rank, group.ranks, group.local_rank) == (0, 1, 0)
    assert group.vote(3) == 3
    assert group.gather("item") == ["item"]
    assert group.agree(7, 2, lambda: pytest.fail("nobody differs")) == 2
    group.start_watchdog(1.0)
    group.report_progress("in step 1")
    group.abort(3, "nobody hears it")
    assert group.watchdog is None
    group.leave()


def test_errors_of_one_process_are_its_own() -> None:
    """A broken connection is no other rank's end where there is no other rank."""
    with pytest.raises(RuntimeError, match="Connection reset by peer"), ProcessGroup().explain_lost_ranks():
        raise RuntimeError("Connection reset by peer")
