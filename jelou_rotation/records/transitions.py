"""The steps a record may take, as changes of its row. No database here."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from jelou_rotation.errors import IllegalTransition, LeaseLost, RecordError, Reused
from jelou_rotation.records.cipher import Cipher
from jelou_rotation.records.record import Lease, Record, Row, Step, record_of
from jelou_rotation.records.schema import PARTS

REMEMBERED = 10
"""The credentials of a project that are known by their fingerprints."""

Columns = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Move:
    """
    One transition on its way into the next commit.

    `steps` are those it may begin at; `changes` gives the columns to set in a row, none when nothing is left to do.
    """

    name: str
    lease: Lease
    steps: Collection[Step]
    changes: Callable[[Row], Columns]
    fingerprint: str | None = None


@dataclass(slots=True)
class Batch:
    """
    The rows a commit has locked, and what its moves make of them.

    `owners` tells whose the fingerprints of the moves already are.
    """

    rows: dict[str, Columns]
    owners: dict[str, str]
    now: datetime
    cipher: Cipher
    changed: set[str] = field(default_factory=set)
    claims: dict[str, Columns] = field(default_factory=dict)
    history: list[Columns] = field(default_factory=list)

    def apply(self, move: Move) -> Record | RecordError:
        """The record as it will be, or why it stays as it is; one refused move does not hurt the others."""
        try:
            row = self.rows.get(move.lease.project_id, {})
            changes = self._changes(move, row)
            after = row | changes
            record = record_of(after, self.cipher)
        except RecordError as error:
            return error
        if changes:
            self._accept(move, after)
        return record

    def _changes(self, move: Move, row: Row) -> Columns:
        check_lease(move.lease, row, self.now)
        if row["step"] not in move.steps:
            raise IllegalTransition(f"{move.lease.project_id}: {move.name} is not possible while {row['step']}")
        changes = move.changes(row)
        owner = self.owners.get(move.fingerprint or "")
        if changes and owner:
            raise Reused(f"{move.lease.project_id}: this value belongs, or belonged, to the project {owner}")
        return changes

    def _accept(self, move: Move, after: Columns) -> None:
        lease = move.lease
        self.rows[lease.project_id] = after
        self.changed.add(lease.project_id)
        if move.fingerprint:
            self.owners[move.fingerprint] = lease.project_id
            claim = {"fingerprint": move.fingerprint, "project_id": lease.project_id, "number": after["made"]}
            self.claims[move.fingerprint] = claim
        self.history.append(
            {
                "project_id": lease.project_id,
                "at": self.now,
                "name": move.name,
                "run_id": lease.run_id,
                "holder": lease.holder,
                "fence": lease.fence,
            }
        )


def check_lease(lease: Lease, row: Row, now: datetime) -> None:
    """Raises LeaseLost."""
    if not row or row["fence"] != lease.fence or row["lease_until"] is None:
        raise LeaseLost(f"{lease.project_id}: the lease was given back, or another run has taken over")
    if row["lease_until"] <= now:
        raise LeaseLost(f"{lease.project_id}: the lease ran out at {row['lease_until']:%Y-%m-%d %H:%M:%S} UTC")


def staged(row: Row, credential: Columns, run_id: str, *, keeps_overlap: bool) -> Columns:
    """A retry finds the value that is pending already: there is never a second one. A leak is not forgotten."""
    if row["step"] != Step.IDLE:
        return {"keeps_overlap": False} if row["keeps_overlap"] and not keeps_overlap else {}
    pending = {f"pending_{part}": credential[part] for part in PARTS}
    return {
        "step": Step.STAGED,
        "accepted_before": None,
        "keeps_overlap": keeps_overlap,
        "made": row["made"] + 1,
        "made_in": run_id or None,
        **pending,
    }


def sent(row: Row, accepted_before: bool | None) -> Columns:
    if row["step"] == Step.SENT:
        # What was seen before the first PATCH counts: from then on Jelou may present either value.
        return {"step": Step.SENT}
    return {"step": Step.SENT, "accepted_before": accepted_before}


def promoted(row: Row, integration: str, overlap_until: datetime | None, run_id: str) -> Columns:
    """The same value sent once more replaces nothing: what was the previous one stays."""
    is_same = row["pending_fingerprint"] == row["current_fingerprint"]
    replaced = {**_moved(row, "current", "previous"), "overlap_until": overlap_until if row["current_value"] else None}
    return {
        "step": Step.IDLE,
        **_moved(row, "pending", "current"),
        **({} if is_same else replaced),
        **_emptied("pending"),
        "integration": integration,
        "failures": 0,
        "handed_over": False,
        "made_in": run_id or None,
    }


def rolling_back(row: Row) -> Columns:
    if row["current_value"] is None:
        raise IllegalTransition(f"{row['project_id']}: no former value is known, so it cannot be put back")
    return {"step": Step.ROLLING_BACK}


def rolled_back(integration: str) -> Columns:
    return {
        "step": Step.IDLE,
        **_emptied("pending"),
        "integration": integration,
        "handed_over": False,
        "made_in": None,
    }


def discarded(_row: Row) -> Columns:
    return {"step": Step.IDLE, **_emptied("pending"), "made_in": None}


def retired(row: Row) -> Columns:
    if row["previous_value"] is None:
        raise IllegalTransition(f"{row['project_id']}: there is no previous value to retire")
    return {**_emptied("previous"), "overlap_until": None, "handed_over": False}


def failed(row: Row, park_after: int) -> Columns:
    failures = row["failures"] + 1
    return {"failures": failures, "parked": row["parked"] or failures >= park_after}


def signing_kept(sealed: str, made_at: datetime) -> Columns:
    return {"signing_value": sealed, "signing_made_at": made_at, "signing_asked": False, "handed_over": False}


def _moved(row: Row, source: str, target: str) -> Columns:
    return {f"{target}_{part}": row[f"{source}_{part}"] for part in PARTS}


def _emptied(slot: str) -> Columns:
    return {f"{slot}_{part}": None for part in PARTS}


def forgotten(claim: Mapping[str, Any]) -> Columns:
    """Up to which number the fingerprints of a project are forgotten once this one is known."""
    return {"of": claim["project_id"], "up_to": claim["number"] - REMEMBERED}
