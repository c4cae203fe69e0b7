"""How long each phase of a run may take, learned from the run itself: a multiple of the longest that it has taken."""

from __future__ import annotations

from dataclasses import dataclass

TIMES_THE_SLOWEST = 10.0

FLOOR_SECONDS = 60.0
"""No phase is given less: a page that is read anew, or a file system that is busy for a moment, is no hang."""

FLOOR_OF_SAVING = 300.0
"""The same where much is written, for shared file systems stand still longer."""

LEARNED_FROM = 3
"""Times that a phase was seen before its limit is believed; the first is not counted, for it makes what later ones find
(memory, kernels, pages of files)."""

STEP, EVALUATION, SAVING = "step", "evaluation", "saving"


@dataclass
class _Seen:
    times: int = 0
    slowest: float = 0.0
    """Of all but the first."""


class PhaseLimits:
    """Told when a phase begins; knows how long the one of now may take."""

    def __init__(self, most: float):
        """`most`: seconds of a phase of which nothing is known, and of every other."""
        self.most = most
        self.phase, self.begun = "", 0.0
        self.seen: dict[str, _Seen] = {}

    def begin(self, phase: str, now: float) -> None:
        """The phase before ends now, and this one begins; an empty name is a phase of which nothing is learned."""
        if self.phase:
            seen = self.seen.setdefault(self.phase, _Seen())
            seen.times += 1
            if seen.times > 1:
                seen.slowest = max(seen.slowest, now - self.begun)
        self.phase, self.begun = phase, now

    @property
    def seconds(self) -> float:
        """What the phase of now may take."""
        seen = self.seen.get(self.phase, _Seen())
        if seen.times < LEARNED_FROM:
            return self.most
        floor = FLOOR_OF_SAVING if self.phase == SAVING else FLOOR_SECONDS
        return min(self.most, max(floor, TIMES_THE_SLOWEST * seen.slowest))
