"""How a row ended, and what was proven about it."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from jelou_rotation.plan import Change


class Outcome(StrEnum):
    """How one row ended."""

    PLANNED = "planned"
    CREATED = "created"
    ROTATED = "rotated"
    UPDATED = "updated"
    UNCHANGED = "unchanged"
    NOT_DUE = "not_due"
    BLOCKED = "blocked"
    FAILED = "failed"
    DRIFTED = "drifted"
    MISSING = "missing"
    OVERDUE = "overdue"
    UNKNOWN = "unknown"
    NOT_STARTED = "not_started"

    @property
    def is_as_wanted(self) -> bool:
        return self in _AS_WANTED


DONE = frozenset({Outcome.CREATED, Outcome.ROTATED, Outcome.UPDATED})
"""Something was sent, and verified."""
_AS_WANTED = DONE | {Outcome.PLANNED, Outcome.UNCHANGED, Outcome.NOT_DUE}


class Evidence(StrEnum):
    """The highest proof reached for a row, lowest first; what each one proves is in the README."""

    ACCEPTED = "accepted"
    ECHOED = "echoed"
    READ_BACK = "read_back"
    RECEIVER_CHECKED = "receiver_checked"
    OLD_REFUSED = "old_refused"


@dataclass(frozen=True, slots=True)
class RowResult:
    """
    How one row ended.

    `attempts` counts the requests sent that change something; `unconfirmed` names the fields that no answer of Jelou
    confirmed; `notes` say what could not be proven and why; `overlap_until` is when the previous credential may be
    retired; `error` is one sentence and `advice` what a person can do about it; none of them ever holds a secret.
    """

    project_id: str
    outcome: Outcome
    evidence: Evidence | None = None
    changes: tuple[Change, ...] = ()
    attempts: int = 0
    unconfirmed: tuple[str, ...] = ()
    error: str | None = None
    advice: str | None = None
    notes: tuple[str, ...] = ()
    overlap_until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Moment:
    """One line of a run's time line; `at` is in UTC."""

    at: datetime
    text: str
