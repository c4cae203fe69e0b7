"""How long a phase may take is learned from those before it."""

from __future__ import annotations

from pal_dist.distributed.phase_limits import (
    EVALUATION,
    FLOOR_OF_SAVING,
    FLOOR_SECONDS,
    SAVING,
    STEP,
    TIMES_THE_SLOWEST,
    PhaseLimits,
)


def lived(phases: list[tuple[str, float]], most: float = 1800.0) -> PhaseLimits:
    """Limits after phases of so many seconds; the last one goes on."""
    limits, now = PhaseLimits(most), 0.0
    for phase, seconds in phases:
        limits.begin(phase, now)
        now += seconds
    return limits


def test_nothing_is_known_at_first() -> None:
    assert lived([(STEP, 1.0)]).seconds == 1800.0
    assert lived([(STEP, 1.0)] * 3).seconds == 1800.0
    assert lived([(STEP, 1.0)] * 4).seconds == FLOOR_SECONDS
    assert lived([(STEP, 1.0)] * 9 + [(EVALUATION, 1.0)]).seconds == 1800.0
    assert lived([(STEP, 1.0)] * 9 + [("", 1.0)]).seconds == 1800.0


def test_ten_times_the_slowest_but_the_first() -> None:
    assert lived([(STEP, 500.0), (STEP, 3.0), (STEP, 12.0), (STEP, 1.0)]).seconds == TIMES_THE_SLOWEST * 12.0
    mixed = [(STEP, 1.0), (EVALUATION, 2.0), (STEP, 20.0), (STEP, 1.0), (EVALUATION, 9.0), (STEP, 0.0)]
    assert lived(mixed).seconds == TIMES_THE_SLOWEST * 20.0


def test_floors_and_the_most() -> None:
    assert lived([(SAVING, 1.0)] * 4).seconds == FLOOR_OF_SAVING
    assert lived([(STEP, 1000.0)] * 4).seconds == 1800.0
    assert lived([(STEP, 1.0)] * 4, most=6.0).seconds == 6.0
