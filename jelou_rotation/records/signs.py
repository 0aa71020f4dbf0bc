"""What a run with shards and its parts tell each other."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sign:
    """A sign of life: who gives it, steps `done`, rows that need attention, and the requests sent by then."""

    holder: str
    done: int
    failures: int
    requests: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a part was at its last sign of life, and how long ago that is; None while it has not begun."""

    sign: Sign | None
    silent_seconds: float | None
    has_ended: bool

    @property
    def done(self) -> int:
        return self.sign.done if self.sign else 0

    @property
    def failures(self) -> int:
        return self.sign.failures if self.sign else 0


@dataclass(frozen=True, slots=True)
class Word:
    """
    What a part hears of its run: why to `stop`, None to go on, how long ago the run gave a sign of life, and how many
    parts have not ended.
    """

    stop: str | None
    silent_seconds: float
    parts_left: int
