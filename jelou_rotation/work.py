"""What every work on a row shares: what it works with, its record and lease, the receiver, and how the row stands."""

import asyncio
import json
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from pydantic import SecretStr

from jelou_rotation.errors import (
    Blocked,
    Drifted,
    Held,
    LeaseLost,
    NotFound,
    OldStillAccepted,
    Passing,
    ReceiverRefused,
    RecordError,
    RowTrouble,
    SigningSecretLost,
)
from jelou_rotation.gateway import ApiKey, Caller, Gateway, Integration
from jelou_rotation.outcomes import Evidence, Outcome, RowResult
from jelou_rotation.plan import RowPlan, contradicts
from jelou_rotation.probe import Answer, Prober, Verdict, judge
from jelou_rotation.records import Credential, Lease, Record, Step
from jelou_rotation.references import Vault
from jelou_rotation.row import AuthType, Probe, Row

if TYPE_CHECKING:
    from jelou_rotation.records.store import Store

T = TypeVar("T")

# A row that failed so often in a row waits for a person.
PARK_AFTER = 5
# Renewed while the run lives; a run that died keeps others waiting no longer than this.
LEASE_SECONDS = 30.0

_INTERRUPTED = "the run ended before this row was verified"

Publisher = Callable[[str, bytes], Awaitable[None]]
"""Writes a document to the block TYPE/NAME. Raises LookupError with a sentence that holds no value."""


@dataclass(frozen=True, slots=True)
class Orders:
    """
    What the operator asked of this run beyond the manifest.

    `leaked` rotates now, due or not, and keeps no overlap. The projects in `overwrite_drift` may be written over
    somebody else's change, those in `end_overlap` in the middle of an open overlap. `create` makes an integration for a
    project that has none.
    """

    leaked: bool = False
    overwrite_drift: frozenset[str] = frozenset()
    end_overlap: frozenset[str] = frozenset()
    create: bool = False


@dataclass(frozen=True, slots=True)
class Tools:
    """What the rows of a run work with. Without a store nothing is remembered and nothing can be generated."""

    gateway: Gateway
    vault: Vault
    prober: Prober
    publish: Publisher
    run_id: str
    store: "Store | None" = None
    orders: Orders = field(default_factory=Orders)


@dataclass(frozen=True, slots=True)
class Stop:
    """Why a run begins no further row, and what a person can do about it."""

    reason: str
    advice: str
    is_final: bool = True
    """Whether rows that have begun end with it too, because trying them again is in vain."""


class Work(ABC):
    """
    One row being worked on. `plan` reads, `apply` does what is to be done.

    Both may be called again after a Passing error and go on where they were. `ended` is how the row ended, None until
    then.
    """

    steps: ClassVar[tuple[str, ...]] = ("plan", "apply")
    """What is done with a row, in order."""
    needs_store: ClassVar[bool] = False

    def __init__(self, row: Row, tools: Tools, record: Record | None = None) -> None:
        self.row = row
        self.record = record
        self.lease: Lease | None = None
        self.plan_made: RowPlan | None = None
        self.trouble: Passing | None = None
        self.ended: RowResult | None = None
        self.attempts = 0
        self._tools = tools
        # A request that changes something left, and no answer has settled yet what became of it.
        self._in_doubt = False
        self._evidence: Evidence | None = None
        self._unconfirmed: tuple[str, ...] = ()
        self._notes: dict[str, None] = {}
        self._still_accepted = ""
        self._is_outdated = False
        self._holds_until = 0.0
        self._counts = False

    @abstractmethod
    async def plan(self) -> None:
        """Read and compare; nothing is written. Raises RowTrouble."""

    @abstractmethod
    async def apply(self) -> None:
        """Do what is to be done. Raises RowTrouble."""

    async def verify(self) -> None:
        """Look once more at a row that is done. Raises RowTrouble."""
        if contradicts(await self._get(), self._plan.wanted):
            raise Drifted("verified once, and then somebody else changed the integration")

    @property
    def is_ready(self) -> bool:
        """Whether it may be applied."""
        return self.plan_made is not None or "plan" not in self.steps

    # The record

    def hold(self, lease: Lease, record: Record) -> None:
        """This run has the record now, and it is as given."""
        self._is_outdated = _essence(self.record) != _essence(record)
        self.record = record
        self.renew(lease)

    def renew(self, lease: Lease) -> None:
        """This run has the record for so much longer, by this machine's own clock."""
        self.lease = lease
        self._holds_until = monotonic() + LEASE_SECONDS

    def _require_lease(self) -> None:
        """Right before a PATCH leaves: a pause of Jelou, or a sleeping machine, may have been longer than the lease."""
        if self._store and monotonic() > self._holds_until:
            raise LeaseLost("the lease ran out before the PATCH could leave")

    def _require_held(self) -> None:
        """Nothing is done to a record that another run has."""
        if self._store and not self.lease:
            raise Held("another run works on this project")

    async def _changing(self, request: Awaitable[T]) -> T:
        """The answer to a request that changes something; until it comes, or a refusal that is certain, all is open."""
        doubted = self._in_doubt
        self.attempts += 1
        self._in_doubt = True
        try:
            return await request
        except RowTrouble as trouble:
            self._in_doubt = doubted or trouble.may_have_acted
            raise

    async def _keep_secret_of(self, post: Awaitable[SecretStr | None]) -> Record:
        """The record with the signing secret that this POST brings; an answer without one leaves it asked for."""
        secret = await post
        if not self._store or not self.record:
            raise AssertionError("unreachable: no signing secret without a store")
        return await self._store.keep_signing_secret(self._lease, secret) if secret else self.record

    # The receiver

    async def _hand_over(self) -> bool:
        """Give the receiver what it should accept, before it is asked. Always True, or Blocked."""
        if self.row.publish_to and self.record:
            try:
                await self._tools.publish(self.row.publish_to.target, document(self.record))
            except LookupError as error:
                reason, advice = f"publishTo {self.row.publish_to}: {error}", "Mend the block, then run the row again."
                raise Blocked(reason, advice, counts=False) from None
            if self._store and self.record.step is Step.IDLE:
                self.record = await self._store.mark_handed_over(self._lease)
        return True

    async def _probe(self, credential: SecretStr, auth_type: AuthType | None) -> tuple[Verdict, Verdict]:
        """What the receiver makes of this credential, and of a random one."""
        seen = self.plan_made.wanted if self.plan_made else self.record and self.record.integration
        url = (seen.webhook_url if seen else None) or self.row.webhook_url
        if not url or not auth_type:
            unknown = Verdict(Answer.INCONCLUSIVE, "not probed: Jelou does not tell the webhook's address")
            return unknown, unknown
        secret = self._signing_secret
        ask, project_id = self._tools.prober, self.row.project_id
        random = await ask.checks(url, auth_type, project_id=project_id, signing_secret=secret)
        verdict = await ask.try_credential(url, auth_type, credential, project_id=project_id, signing_secret=secret)
        verdict, random = judge(verdict, random), judge(random, verdict)
        if random.answer is Answer.ACCEPTED:
            self._note("the receiver does not check: it accepts a random credential")
        return verdict, random

    async def _close_overlap(self) -> bool:
        """Retire the former credential once the receiver refuses it and accepts the current one; True when it did."""
        record = self.record
        if not self._store or not record or not record.current or not record.previous:
            return True
        await self._hand_over()
        if self.row.probing is Probe.OFF:
            self._note("the former credential was forgotten without proof that it is dead (probe: off)")
        else:
            current, _ = await self._probe(record.current.value, record.current.auth_type)
            former, _ = await self._probe(record.previous.value, record.previous.auth_type)
            former, current = judge(former, current), judge(current, former)
            if former.answer is not Answer.REFUSED or current.answer is not Answer.ACCEPTED:
                self._still_accepted = f"old_still_accepted: the former credential is not proven dead ({former.reason})"
                return False
            self._evidence = Evidence.OLD_REFUSED
        self.record = await self._store.retire(self._lease)
        await self._hand_over()
        return True

    # How it stands

    def standing(self, *, plan_only: bool, stopped_by: Stop | None) -> RowResult:
        """The result as far as it is known now."""
        if self.ended:
            return self.ended
        if self.trouble:
            return self.failure(self.trouble)
        if self._is_unsettled:
            return self.result(Outcome.UNKNOWN, error=_INTERRUPTED, advice=Passing.advice)
        if self.plan_made and plan_only:
            return self.result(Outcome.PLANNED)
        if stopped_by:
            reason = f"the run was stopped: {stopped_by.reason}"
            return self.result(Outcome.NOT_STARTED, error=reason, advice=stopped_by.advice)
        return self.result(Outcome.NOT_STARTED, error="the run ended before this row", advice="Run the row again.")

    def fail(self, trouble: RowTrouble) -> None:
        self.ended = self.failure(trouble)
        self._counts = trouble.counts

    def failure(self, trouble: RowTrouble) -> RowResult:
        if isinstance(trouble, Drifted):
            outcome = Outcome.DRIFTED
        elif isinstance(trouble, NotFound):
            outcome = Outcome.MISSING
        elif isinstance(trouble, ReceiverRefused | OldStillAccepted | SigningSecretLost):
            outcome = Outcome.FAILED
        elif self._may_be_live:
            outcome = Outcome.UNKNOWN
        elif isinstance(trouble, Blocked | Held):
            outcome = Outcome.BLOCKED
        else:
            outcome = Outcome.FAILED
        return self.result(outcome, error=str(trouble), advice=trouble.advice)

    def result(self, outcome: Outcome, *, error: str | None = None, advice: str | None = None) -> RowResult:
        has_overlap = self.record is not None and self.record.previous is not None
        return RowResult(
            project_id=self.row.project_id,
            outcome=outcome,
            evidence=self._evidence,
            changes=self.plan_made.changes if self.plan_made else (),
            attempts=self.attempts,
            unconfirmed=self._unconfirmed,
            error=error,
            advice=advice,
            notes=tuple(self._notes),
            overlap_until=self.record.overlap_until if self.record and has_overlap else None,
        )

    async def note_failure(self) -> None:
        """A row that ended badly by its own fault counts towards parking; an outage or a refused key does not."""
        if self._store and self.lease and self._counts:
            with suppress(RecordError):
                await self._store.note_failure(self.lease, PARK_AFTER)

    def _note(self, text: str) -> None:
        self._notes[text] = None

    async def _get(self) -> Integration:
        return await self._tools.gateway.get(self.row.project_id, self._caller)

    @property
    def _signing_secret(self) -> SecretStr | None:
        if self.row.signing_secret:
            return self._tools.vault[self.row.signing_secret]
        return self.record.signing.value if self.record and self.record.signing else None

    @property
    def _caller(self) -> Caller | None:
        return ApiKey(self._tools.vault[self.row.api_key]) if self.row.api_key else None

    @property
    def _store(self) -> "Store | None":
        return self._tools.store

    @property
    def _lease(self) -> Lease:
        if self.lease is None:
            raise LeaseLost("nobody holds this record")
        return self.lease

    @property
    def _plan(self) -> RowPlan:
        if self.plan_made is None:
            raise AssertionError("unreachable: only a row with a plan is applied")
        return self.plan_made

    @property
    def _is_unsettled(self) -> bool:
        """Something was sent, and it is not known yet what became of it."""
        return self._in_doubt

    @property
    def _may_be_live(self) -> bool:
        return self._in_doubt or (self.record is not None and self.record.step is Step.SENT)


async def to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """
    What must not be left half done is finished even when the run is cancelled, which is then heard.

    Raises what it ended with first, because that is how its row stands.
    """
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            # Whoever asks twice would lose what Jelou tells only once.
            with suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        task.result()
        raise


def document(record: Record) -> bytes:
    """What `publishTo` holds: the credentials the receiver should accept, and the signing secret where it is known."""
    overlaps = record.overlap_until is not None and record.overlap_until > datetime.now(UTC)
    slots = {"current": record.current, "pending": record.pending, "previous": record.previous if overlaps else None}
    signing = {"signingSecret": record.signing.value.get_secret_value()} if record.signing else {}
    return json.dumps(
        {"projectId": record.project_id} | {name: _exposed(each) for name, each in slots.items()} | signing
    ).encode()


def _exposed(credential: Credential | None) -> dict[str, str] | None:
    if credential is None:
        return None
    return {
        "authType": credential.auth_type,
        "value": credential.value.get_secret_value(),
        "madeAt": credential.made_at.isoformat(),
    }


def _essence(record: Record | None) -> object:
    """What another run would have changed; a fresh record is as good as none."""
    if record is None:
        return Step.IDLE, None, None
    return record.step, record.current and record.current.fingerprint, record.pending and record.pending.fingerprint
