"""An error of one rank is every rank's."""

from __future__ import annotations

from typing import Any

import pytest

from pal_dist.core.errors import DoesNotFitError, UserError
from pal_dist.training.shared_errors import raise_on_every_rank


class EngineOfTwo:
    """This rank's engine; the other rank reports `theirs`."""

    def __init__(self, theirs: UserError | None) -> None:
        self.theirs, self.gathered = theirs, 0

    def gather(self, item: Any) -> list[Any]:
        self.gathered += 1
        return [self.theirs, item]


def test_nothing_happens_where_all_is_well() -> None:
    engine: Any = EngineOfTwo(None)
    with raise_on_every_rank(engine):
        pass
    assert engine.gathered == 1


def test_my_error_is_raised_after_the_others_know() -> None:
    engine: Any = EngineOfTwo(None)
    with pytest.raises(DoesNotFitError, match="mine"), raise_on_every_rank(engine):
        raise DoesNotFitError("mine")
    assert engine.gathered == 1


def test_another_rank_s_error_is_raised_here() -> None:
    engine: Any = EngineOfTwo(UserError("theirs"))
    with pytest.raises(UserError, match="theirs"), raise_on_every_rank(engine):
        pass


def test_of_two_errors_every_rank_raises_the_first_rank_s() -> None:
    engine: Any = EngineOfTwo(UserError("theirs"))
    with pytest.raises(UserError, match="theirs"), raise_on_every_rank(engine):
        raise UserError("mine")


def test_a_bug_ends_its_own_rank() -> None:
    engine: Any = EngineOfTwo(None)
    with pytest.raises(ZeroDivisionError), raise_on_every_rank(engine):
        raise ZeroDivisionError
    assert engine.gathered == 0
