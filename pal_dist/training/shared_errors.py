"""What only some ranks do may fail: the error is raised on every rank, so that none waits for one that has given up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pal_dist.core.errors import UserError
from pal_dist.distributed.engine import Engine


@contextmanager
def raise_on_every_rank(engine: Engine) -> Iterator[None]:
    """Every rank must enter, also one that has nothing to do in the block. Raises a UserError of any rank on all.

    Other exceptions are bugs of ours: they end their own rank, and the watchdog ends the others.
    """
    own_error: UserError | None = None
    try:
        yield
    except UserError as error:
        own_error = error
    errors = [error for error in engine.gather(own_error) if error is not None]
    if errors:
        raise errors[0]
