"""What the store tells: records, leases, history."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import SecretStr

from jelou_rotation.gateway import Integration
from jelou_rotation.records.cipher import Cipher
from jelou_rotation.row import AuthType

Row = Mapping[str, Any]
"""A row of `jelou_records` as the database gives it, values sealed."""


class Step(StrEnum):
    """Where a project stands on its way from one credential to the next."""

    IDLE = "idle"
    STAGED = "staged"
    """The pending value is durable, and no PATCH was sent."""
    SENT = "sent"
    """A PATCH with the pending value may have left."""
    ROLLING_BACK = "rolling_back"
    """The current value is being put back."""


@dataclass(frozen=True, slots=True)
class Credential:
    """One value that Jelou presents, or presented, at the webhook."""

    value: SecretStr
    auth_type: AuthType
    made_at: datetime
    fingerprint: str


@dataclass(frozen=True, slots=True)
class SigningSecret:
    """What Jelou signs its deliveries with; it is told only when it is made."""

    value: SecretStr
    made_at: datetime


@dataclass(frozen=True, slots=True)
class Lease:
    """
    The right to change one record until `until`, or longer when renewed.

    `fence` grows with every lease of the project, so that an older one is recognised.
    """

    project_id: str
    fence: int
    holder: str
    run_id: str
    seconds: float
    until: datetime


@dataclass(frozen=True, slots=True)
class Record:
    """
    What is durably known of one project.

    `current` is what Jelou was last seen to take, None before the first time; `previous` what the receiver should still
    accept until `overlap_until`, when it may be retired. `accepted_before` tells whether the receiver accepted
    `current` before the PATCH was sent, None when nobody asked. `keeps_overlap` is false where the pending value
    replaces a leaked one; `handed_over` tells whether the receiver was told of the record as it is. `made_in` is the
    run that made the pending value, or brought in the current one as what it wanted. `failures` counts those in a row;
    a parked project waits for a person. `signing_asked` is true from before Jelou is asked to make a signing secret
    until that secret is durable: where there is an integration then, its secret was lost, and `signing` is a former
    one. `holder`, `run_id` and `held_until` tell who took it last and has not given it back.
    """

    project_id: str
    step: Step
    current: Credential | None
    pending: Credential | None
    previous: Credential | None
    overlap_until: datetime | None
    accepted_before: bool | None
    keeps_overlap: bool
    handed_over: bool
    made_in: str | None
    integration: Integration | None
    failures: int
    parked: bool
    signing: SigningSecret | None
    signing_asked: bool
    holder: str | None
    run_id: str | None
    held_until: datetime | None


@dataclass(frozen=True, slots=True)
class Transition:
    """One line of a project's history; `run_id` is None where a person did it outside a run."""

    at: datetime
    name: str
    run_id: str | None
    holder: str
    fence: int


def record_of(row: Row, cipher: Cipher) -> Record:
    """Raises Unreadable."""
    return Record(
        project_id=row["project_id"],
        step=Step(row["step"]),
        current=_credential(row, "current", cipher),
        pending=_credential(row, "pending", cipher),
        previous=_credential(row, "previous", cipher),
        overlap_until=row["overlap_until"],
        accepted_before=row["accepted_before"],
        keeps_overlap=row["keeps_overlap"],
        handed_over=row["handed_over"],
        made_in=row["made_in"],
        integration=integration_of(row, cipher),
        failures=row["failures"],
        parked=row["parked"],
        signing=_signing(row, cipher),
        signing_asked=row["signing_asked"],
        holder=row["holder"],
        run_id=row["run_id"],
        held_until=row["lease_until"],
    )


def _credential(row: Row, slot: str, cipher: Cipher) -> Credential | None:
    sealed = row[f"{slot}_value"]
    if sealed is None:
        return None
    return Credential(
        SecretStr(cipher.unseal(row["project_id"], sealed)),
        AuthType(row[f"{slot}_auth_type"]),
        row[f"{slot}_made_at"],
        row[f"{slot}_fingerprint"],
    )


def _signing(row: Row, cipher: Cipher) -> SigningSecret | None:
    sealed = row["signing_value"]
    if sealed is None:
        return None
    return SigningSecret(SecretStr(cipher.unseal(row["project_id"], sealed)), row["signing_made_at"])


def integration_of(row: Row, cipher: Cipher) -> Integration | None:
    sealed = row["integration"]
    return Integration.parse(json.loads(cipher.unseal(row["project_id"], sealed))) if sealed else None


def sealed_integration(project_id: str, integration: Integration, cipher: Cipher) -> str:
    moment = integration.updated_at
    fields = {
        "webhookUrl": integration.webhook_url,
        "authType": integration.auth_type,
        "updatedAt": moment.isoformat() if moment else None,
    }
    return cipher.seal(project_id, json.dumps(fields))
