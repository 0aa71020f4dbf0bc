"""
Everything that can go wrong, grouped by what the caller can do about it.

* JelouRotationError
  x RefusedInput         nothing was sent: correct what was given and run again
    + SettingsError
    + ManifestError
    + UnresolvedReferences
    + StoreError         the record store cannot be opened, or the key does not fit it
    + Busy               another run is at work
    + LimitExceeded      the plan is larger than what may be done without being asked
    + NotApproved        nobody agreed to this plan
  x RowsNeedAttention    the run finished and some rows are not as wanted: see report.py
  x RowTrouble           one row did not get where it should
    + Passing            may succeed when the same is tried again
      - Held             another run works on this project
      - Unreachable      no connection was made: nothing was sent
      - Throttled        429: not acted on
      - ServerTrouble    5xx: may have been acted on
      - NoAnswer         the request left, no readable answer came back: may have been acted on
      - Contradicted     2xx whose body says failure: may have been acted on
      - NotYetVisible    accepted, and GET still shows the former state
    + InvalidRequest     400, 409, 422: the values of this row are refused
    + AccessDenied       403: this key may not touch this project
      - KeyRefused       401: the key itself is refused, for every project that uses it
    + NotFound           404: no integration for this project
    + Unexpected         a redirect, or a status the contract does not know
    + Drifted            somebody else changed the integration meanwhile
    + Blocked            something must happen first, and nothing was sent
    + ReceiverRefused    the receiver refuses what Jelou was given
    + OldStillAccepted   the overlap is over and the former credential is not proven dead
    + SigningSecretLost  Jelou made a signing secret and its answer never arrived
    + RecordError        the record did not become what was asked, and is as it was
      - LeaseLost        somebody else works on this project now, or the time ran out: leave it alone
      - IllegalTransition  not allowed at the step the record is at: read it again
      - Reused           the value belongs, or belonged lately, to this or another project
      - Unreadable       what is stored does not decrypt: it was altered, moved, or sealed with another key
      - StoreUnavailable the store failed in the middle: what was asked may or may not be durable, so read again

The class is the decision: nothing matches on text. No message holds a header or a body value that was sent,
nor any text a server answered with, because a validator may echo what it was given.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


class JelouRotationError(Exception):
    """Base of every error this package raises on purpose."""


class RefusedInput(JelouRotationError):
    """Refused before anything was sent."""


@dataclass(frozen=True, slots=True)
class Fault:
    """
    One thing wrong with what a person gave, where it is and what was expected; never the offending value.

    `where` is a file, a setting or a reference; `line` and `column` count from 1; `field` is the key or column name.
    """

    where: str
    message: str
    line: int | None = None
    column: int | None = None
    field: str | None = None

    def __str__(self) -> str:
        line = f"line {self.line}" if self.line else None
        column = f"column {self.column}" if self.column else None
        place = ", ".join(part for part in (self.where, line, column, self.field) if part)
        return f"{place}: {self.message}"


class FaultsError(RefusedInput):
    """Every fault at once, one a line."""

    subject: ClassVar[str]

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = tuple(faults)
        count = "one fault" if len(self.faults) == 1 else f"{len(self.faults)} faults"
        # Also read where line breaks are lost, as in the state's message in Prefect's UI.
        super().__init__(f"{self.subject}: {count}:\n  " + ";\n  ".join(map(str, self.faults)))


class SettingsError(FaultsError):
    """The settings are incomplete or contradict each other."""

    subject = "settings"


class ManifestError(FaultsError):
    """The manifest cannot be used as it is."""

    subject = "manifest"


class UnresolvedReferences(FaultsError):
    """A credential could not be read from where its reference points."""

    subject = "references"


class StoreError(RefusedInput):
    """The record store cannot be used: its address, its key, or the rights to write it."""


class Busy(RefusedInput):
    """Another run holds the lock."""


class LimitExceeded(RefusedInput):
    """The plan is larger than the limits of the run; the message has the numbers and the way to allow it once."""


class NotApproved(RefusedInput):
    """The plan is not the one that was approved, or nobody approved it."""


class RowTrouble(JelouRotationError):
    """
    One row did not get where it should.

    `may_have_acted` tells whether Jelou may have done it all the same; `counts` whether the row itself is to blame, so
    that it is parked when that happens again and again; `advice` tells a person what to do.
    """

    may_have_acted: ClassVar[bool] = False
    counts: bool = True
    advice: str = "Look at the message, then run the row again."


class Passing(RowTrouble):
    """
    May succeed when the same request is sent again.

    `retry_after` is the pause Jelou asked for, in seconds, or None.
    """

    counts = False
    advice = "Run the row again: the same value is sent, which does no harm."

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Held(Passing):
    """Another run works on this project."""

    advice = "Wait for the other run; a run that died gives its projects free within half a minute."


class Unreachable(Passing):
    """No connection was made: nothing was sent."""

    advice = "Check JELOU_BASE_URL, DNS and the network between here and Jelou, then run the row again."


class Throttled(Passing):
    """Jelou asked for a pause and did not act."""

    advice = "Set or lower JELOU_REQUESTS_PER_SECOND, then run the row again."


class ServerTrouble(Passing):
    """Jelou answered 5xx."""

    may_have_acted = True
    advice = (
        "Run the row again later. A lasting 500 can also be a credentials problem on Jelou's side (page APIINTRO):"
        " try the same key on another project."
    )


class NoAnswer(Passing):
    """The request left and no readable answer came back."""

    may_have_acted = True


class Contradicted(Passing):
    """The status was 2xx and the body said failure."""

    may_have_acted = True


class NotYetVisible(Passing):
    """Jelou accepted the change and its GET still shows the former state."""

    may_have_acted = True
    advice = "Run the row again in a few minutes; if GET still shows the former state, ask Jelou's support."


class InvalidRequest(RowTrouble):
    """Jelou refuses the values of this row."""

    advice = "Correct the row in the manifest (the fields named), then run it again."


class AccessDenied(RowTrouble):
    """This key may not touch this project."""

    advice = "Give the row an apiKey that belongs to this project, or ask for the rights."


class KeyRefused(AccessDenied):
    """Jelou refuses the key itself."""

    counts = False
    advice = "Check JELOU_API_KEY (or the row's apiKey): it is wrong, was deleted, or belongs to the other scheme."


class NotFound(RowTrouble):
    """Jelou knows no integration for this project."""

    advice = "Check the projectId; if it is right, jelou-rotation onboard creates the integration."


class Drifted(RowTrouble):
    """Somebody else changed the integration after it was planned."""

    counts = False
    advice = "Find out who changed it, bring the manifest in line, then plan again."


class Blocked(RowTrouble):
    """Something must happen first, which `advice` names; nothing was sent."""

    def __init__(self, message: str, advice: str, *, counts: bool = True) -> None:
        super().__init__(message)
        self.advice = advice
        self.counts = counts


class ReceiverRefused(RowTrouble):
    """The receiver refuses what Jelou was given."""

    advice = (
        "Make the receiver accept the credential (jelou-rotation credential show PROJECT), then run the row again."
        " Until then deliveries may be lost, unless the message says that the former one was put back."
    )


class OldStillAccepted(RowTrouble):
    """The overlap is over and the receiver is not proven to refuse the former credential."""

    counts = False
    advice = "Make the receiver forget the former credential; the next run of close-overlaps looks again."


class SigningSecretLost(RowTrouble):
    """Jelou made a signing secret and its answer never arrived."""

    counts = False
    advice = (
        "Make a new one: jelou-rotation signing-secrets MANIFEST --only PROJECT."
        " Until then nobody can check Jelou's signatures for this project."
    )


class Unexpected(RowTrouble):
    """An answer the contract does not know."""

    advice = "Check JELOU_BASE_URL: a redirect or an unknown status usually means another address."


class RecordError(RowTrouble):
    """One record did not become what was asked."""

    counts = False
    advice = "Run the row again: it goes on from what the record says."


class LeaseLost(RecordError):
    """The lease ran out or somebody else has it now: whatever is known about this project may be old."""


class IllegalTransition(RecordError):
    """Not allowed at the step the record is at."""


class Reused(RecordError):
    """The value belongs, or belonged lately, to this or another project."""


class Unreadable(RecordError):
    """What is stored does not decrypt as this project's."""


class StoreUnavailable(RecordError):
    """The store failed in the middle; what was asked may or may not be durable."""
