"""
The life of a row.

    plan -> hold -> drift guard -> stage -> hand over -> preflight probe
         -> PATCH -> echo -> read back -> receiver probe -> promote -> overlap -> retire

Each step first looks whether it is already done, so a row can be taken up again after any trouble, in this process or
in the next one, and is always finished with the same value. A credential is durable before its PATCH, an unclear
answer is settled by GET and by sending the same value again, and what somebody else wrote is not overwritten unless
the operator named the project.
"""

import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from time import monotonic

from pydantic import SecretStr

from jelou_rotation.errors import (
    Blocked,
    Drifted,
    Held,
    LeaseLost,
    NotFound,
    NotYetVisible,
    OldStillAccepted,
    Passing,
    ReceiverRefused,
    RecordError,
    RowTrouble,
)
from jelou_rotation.gateway import ApiKey, Caller, Gateway, Integration
from jelou_rotation.generation import generate
from jelou_rotation.outcomes import Evidence, Outcome, RowResult
from jelou_rotation.plan import RowPlan, contradicts, plan_row, same_address, unconfirmed
from jelou_rotation.probe import Answer, Prober, Verdict, judge
from jelou_rotation.records import Credential, Lease, Record, Step, Store
from jelou_rotation.references import Vault
from jelou_rotation.row import AuthType, Probe, Row

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
    somebody else's change, those in `end_overlap` in the middle of an open overlap.
    """

    leaked: bool = False
    overwrite_drift: frozenset[str] = frozenset()
    end_overlap: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Tools:
    """What the rows of a run work with. Without a store nothing is remembered and nothing can be generated."""

    gateway: Gateway
    vault: Vault
    prober: Prober
    publish: Publisher
    run_id: str
    store: Store | None = None
    orders: Orders = field(default_factory=Orders)


class Life:
    """One row on its way. `plan` and `apply` may be called again after a Passing error and go on where they were."""

    def __init__(self, row: Row, tools: Tools, record: Record | None = None) -> None:
        self.row = row
        self.record = record
        self.lease: Lease | None = None
        self.plan_made: RowPlan | None = None
        self.trouble: Passing | None = None
        self.ended: RowResult | None = None
        self.attempts = 0
        self._tools = tools
        # A PATCH left and no answer has settled yet what became of it.
        self._in_doubt = False
        self._echo: Integration | None = None
        self._evidence: Evidence | None = None
        self._unconfirmed: tuple[str, ...] = ()
        self._notes: dict[str, None] = {}
        self._still_accepted = ""
        self._is_outdated = False
        self._is_staged = False
        # What is finished here is not what the row asks for now.
        self._is_superseded = False
        self._holds_until = 0.0
        self._counts = False
        self._accepted_before: bool | None = None

    # Plan

    async def plan(self) -> None:
        """Read the integration and compare; nothing is written. A row that is not due is not even read."""
        self._require_unparked()
        if self._is_settled_by_record():
            self.ended = self.result(Outcome.NOT_DUE)
            return
        seen = await self._get()
        was_sent = self.record is not None and self.record.step in {Step.SENT, Step.ROLLING_BACK}
        plan = plan_row(
            self.row,
            seen,
            rotates=self._is_due(seen),
            knows_former=bool(self.record and self.record.current),
            before=self.record.integration if was_sent and self.record else None,
        )
        if plan.rotates:
            self._require_closed_overlap()
        self.plan_made = plan
        if not plan.sends:
            self._evidence = Evidence.READ_BACK
            self.ended = self.result(Outcome.NOT_DUE if self.row.generates else Outcome.UNCHANGED)

    def _require_unparked(self) -> None:
        if self.record and self.record.parked:
            raise Blocked(
                f"parked after {self.record.failures} failures in a row",
                f"Mend the cause the last reports name, then: jelou-rotation unpark {self.row.project_id}",
            )

    def _require_closed_overlap(self) -> None:
        until = self.record.overlap_until if self.record and self.record.previous else None
        allowed = self._tools.orders.leaked or self.row.project_id in self._tools.orders.end_overlap
        if until and until > datetime.now(UTC) and not self._is_unfinished and not allowed:
            raise Blocked(
                f"the overlap of the last rotation is open until {until:%Y-%m-%d %H:%M} UTC",
                "Wait until then, or end it early by name: --end-overlap PROJECT.",
                counts=False,
            )

    @property
    def _may_be_live(self) -> bool:
        return self._in_doubt or (self.record is not None and self.record.step is Step.SENT)

    @property
    def _is_unfinished(self) -> bool:
        return self.record is not None and self.record.step is not Step.IDLE

    def _is_settled_by_record(self) -> bool:
        """Made here, young enough, and nothing else in the row differs from what was last seen: no request needed."""
        if not self.row.generates or self._is_unfinished or self._is_old():
            return False
        seen = self.record.integration if self.record else None
        return seen is not None and not plan_row(self.row, seen, rotates=False).sends

    def _is_old(self) -> bool:
        if self._tools.orders.leaked or not self.record or not self.record.current:
            return True
        least_age = max(self.row.rotate_every or timedelta(0), self.row.minimum_age)
        is_of_age = datetime.now(UTC) - self.record.current.made_at >= least_age
        return is_of_age or self._is_of_another_type(self.record.integration)

    def _is_of_another_type(self, seen: Integration | None) -> bool:
        """A credential goes with its authType: when that changes, it is sent anew."""
        stored = self.record.current.auth_type if self.record and self.record.current else None
        return {stored, seen.auth_type if seen else None} - {None} != {self.row.auth_type}

    def _is_due(self, seen: Integration) -> bool:
        """Whether a credential is to be sent: an unfinished one always, else by age, or because it changed."""
        if not self.row.authorization:
            return False
        if not self._store or self._is_unfinished:
            return True
        if self.row.generates:
            return self._is_old() or self._is_of_another_type(seen)
        if not self.record or not self.record.current:
            return True
        is_new = self._store.fingerprint(self._tools.vault[self.row.authorization]) != self.record.current.fingerprint
        if self._tools.orders.leaked and not is_new:
            raise Blocked(
                f"{self.row.authorization} still holds the credential that leaked",
                "Put a new one where the reference points, then run the row again.",
            )
        return is_new or self._is_of_another_type(seen) or _moved(seen, self.record.integration or Integration())

    # Apply

    async def apply(self) -> None:
        """Send what was planned and verify it."""
        await self._require_hold()
        if self.ended:
            return
        if self.record and self.record.step is Step.ROLLING_BACK:
            await self._put_back()
        if not self._echo:
            seen = await self._guard()
            if not self._plan.sends:
                self._evidence = Evidence.READ_BACK
                self.ended = self.result(Outcome.UNCHANGED)
                return
            if self._plan.rotates:
                await self._settle_former()
                await self._stage()
                if self._store and self.record and self.record.step is Step.STAGED:
                    self.record = await self._store.observe(self._lease, seen)
                await self._hand_over()
                await self._preflight()
            self._echo = await self._send()
        told = await self._read_back()
        if self._plan.rotates:
            await self._check_receiver()
        await self._promote(told)
        self.ended = self.result(Outcome.ROTATED if self._plan.rotates else Outcome.UPDATED)

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

    async def _require_hold(self) -> None:
        """Nothing is sent for a record that another run has; what it did meanwhile is planned for anew."""
        if self._store and not self.lease:
            raise Held("another run works on this project")
        if self._is_outdated:
            await self.plan()
            self._is_outdated = False

    async def _guard(self) -> Integration:
        """Before each PATCH: nobody else wrote. After one that went unanswered, ours counts as nobody else's."""
        told = await self._get()
        was_sent = self.record is not None and self.record.step in {Step.SENT, Step.ROLLING_BACK}
        before = self._plan.before
        is_ours = (was_sent or self._in_doubt) and not contradicts(told, self._plan.wanted)
        is_foreign = contradicts(told, before) or (not (was_sent or self._in_doubt) and _moved(told, before))
        if is_foreign and not is_ours:
            self._overwrite(told)
        return told

    def _overwrite(self, told: Integration) -> None:
        """Only by order: the row is planned for once more, from what is there now."""
        if self.row.project_id not in self._tools.orders.overwrite_drift:
            raise Drifted("somebody else changed the integration since it was planned, and it was left as it is")
        knows_former = bool(self.record and self.record.current)
        self.plan_made = plan_row(self.row, told, rotates=self._plan.rotates, knows_former=knows_former)
        self._note("somebody else's change was overwritten, as ordered")

    async def _settle_former(self) -> None:
        """A credential whose overlap is over makes room for the next one: proven dead, or said not to be."""
        until = self.record.overlap_until if self.record and self.record.previous else None
        if until and until <= datetime.now(UTC) and not self._is_unfinished and not await self._close_overlap():
            self._note(f"the credential before the last one makes room: {self._still_accepted}")
            self._still_accepted = ""
        # What was proven of the former one proves nothing of the one that follows.
        self._evidence = None

    async def _stage(self) -> None:
        """Make the value durable before it is sent; one that is pending already stays the one to send."""
        if not self._store or not self.row.authorization or not self.row.auth_type or not self.record:
            return
        generates, leaked = self.row.generates, self._tools.orders.leaked
        value = (
            generate(self.row.policy, self.row.auth_type) if generates else self._tools.vault[self.row.authorization]
        )
        pending = self.record.pending
        if pending and not self._is_staged:
            self._is_superseded = pending.auth_type != self.row.auth_type or (
                leaked if generates else pending.fingerprint != self._store.fingerprint(value)
            )
            if self._is_superseded and self.record.step is Step.STAGED:
                self.record, self._is_superseded = await self._store.discard(self._lease), False
        if self._is_superseded and pending and pending.auth_type != self.row.auth_type:
            raise Blocked(
                f"an interrupted rotation must be finished as {pending.auth_type} first",
                f"Run the row once with authType {pending.auth_type}, then with the new one.",
            )
        self.record = await self._store.stage(
            self._lease, value, self.row.auth_type, exclusive=generates, keeps_overlap=not leaked
        )
        self._is_staged = True

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

    async def _preflight(self) -> None:
        """No PATCH unless the receiver is ready for the new credential, as far as the row wants that known."""
        if self.row.probing is Probe.OFF:
            if self.row.generates:
                self._note("the receiver was not asked (probe: off)")
            return
        verdict, _ = await self._probe(self._credential, self.row.auth_type)
        is_enough = verdict.answer is Answer.ACCEPTED or (
            self.row.probing is Probe.BEST_EFFORT and verdict.answer is not Answer.REFUSED
        )
        if not is_enough and self._may_be_live:
            # Jelou may present it already: put the former back, or send the same again and look.
            if verdict.answer is Answer.REFUSED:
                await self._roll_back(verdict)
            return
        if not is_enough:
            raise Blocked(
                f"the receiver does not accept the new credential yet: {verdict.reason}",
                "Make the receiver accept it (jelou-rotation credential show PROJECT), then run the row again:"
                " the same value is used.",
            )
        if self.record and self.record.current:
            former, _ = await self._probe(self.record.current.value, self.record.current.auth_type)
            self._accepted_before = former.answer is Answer.ACCEPTED

    async def _send(self) -> Integration:
        body = self._plan.body(self._credential if self._plan.rotates else None)
        was_sent = self._may_be_live
        if self._store and self._plan.rotates:
            # The fence: a run that was replaced stops here, before anything leaves.
            self.record = await self._store.mark_sent(self._lease, accepted_before=self._accepted_before)
        try:
            told = await self._patch(body)
        except RowTrouble:
            if not self._in_doubt and not was_sent and self._store and self._plan.rotates:
                # Refused for certain: the value may be replaced by another one.
                self.record = await self._store.mark_unsent(self._lease)
            raise
        is_echo = bool(told.webhook_url) and not contradicts(told, self._plan.wanted)
        self._evidence = Evidence.ECHOED if is_echo and not _is_earlier(told, self._plan.seen) else Evidence.ACCEPTED
        return told

    async def _patch(self, body: dict[str, str]) -> Integration:
        doubted = self._in_doubt
        self.attempts += 1
        self._in_doubt = True
        try:
            return await self._tools.gateway.patch(self.row.project_id, body, self._caller, self._require_lease)
        except RowTrouble as trouble:
            self._in_doubt = doubted or trouble.may_have_acted
            raise

    async def _read_back(self) -> Integration:
        plan, told, echo = self._plan, await self._get(), self._echo or Integration()
        if contradicts(told, plan.wanted):
            if contradicts(told, plan.before):
                raise Drifted("Jelou accepted our PATCH, and GET shows what neither we nor the former state had")
            raise NotYetVisible("Jelou accepted our PATCH, and GET still shows the former state")
        if _is_earlier(told, echo):
            raise NotYetVisible("Jelou accepted our PATCH, and GET answers from before it (updatedAt)")
        self._unconfirmed = unconfirmed(told, plan.wanted)
        if self.attempts == 1 and _is_earlier(echo, told):
            # One PATCH of ours, and the record is younger than its answer: perhaps somebody wrote after us.
            self._unconfirmed += ("updatedAt",)
        else:
            self._evidence = Evidence.READ_BACK
        self._in_doubt = False
        return told

    async def _check_receiver(self) -> None:
        if self.row.probing is Probe.OFF:
            return
        verdict, random = await self._probe(self._credential, self.row.auth_type)
        if verdict.answer is Answer.REFUSED:
            await self._roll_back(verdict)
        if verdict.answer is Answer.ACCEPTED and random.answer is Answer.REFUSED:
            self._evidence = Evidence.RECEIVER_CHECKED if self._evidence is Evidence.READ_BACK else self._evidence
        elif verdict.answer is not Answer.ACCEPTED:
            self._note(f"the receiver could not be checked: {verdict.reason}")

    async def _probe(self, credential: SecretStr, auth_type: AuthType | None) -> tuple[Verdict, Verdict]:
        """What the receiver makes of this credential, and of a random one."""
        seen = self.plan_made.wanted if self.plan_made else self.record and self.record.integration
        url = (seen.webhook_url if seen else None) or self.row.webhook_url
        if not url or not auth_type:
            unknown = Verdict(Answer.INCONCLUSIVE, "not probed: Jelou does not tell the webhook's address")
            return unknown, unknown
        secret = self._tools.vault[self.row.signing_secret] if self.row.signing_secret else None
        ask, project_id = self._tools.prober, self.row.project_id
        random = await ask.checks(url, auth_type, project_id=project_id, signing_secret=secret)
        verdict = await ask.try_credential(url, auth_type, credential, project_id=project_id, signing_secret=secret)
        verdict, random = judge(verdict, random), judge(random, verdict)
        if random.answer is Answer.ACCEPTED:
            self._note("the receiver does not check: it accepts a random credential")
        return verdict, random

    # Rollback

    async def _roll_back(self, verdict: Verdict) -> None:
        """The receiver refuses what Jelou has now: put the former value back if that one was accepted."""
        refused = f"the receiver refuses the new credential after the PATCH ({verdict.reason})"
        if not self._store or not self.record or not self.record.current:
            raise ReceiverRefused(f"{refused}, and the former one is not known here")
        if not self.record.accepted_before:
            raise ReceiverRefused(f"{refused}, and did not accept the former one before either")
        self.record = await self._store.begin_rollback(self._lease)
        await self._put_back()

    async def _put_back(self) -> None:
        store, record = self._store, self.record
        if not store or not record or not record.current:
            raise AssertionError("unreachable: the store allows a rollback only to a known value")
        self._note(
            "the receiver refused the new credential after the PATCH: until the former is back, messages are lost"
        )
        self._evidence = None
        await self._guard()
        before = self._plan.before
        body = {"authType": record.current.auth_type, "authorization": record.current.value.get_secret_value()}
        if before.webhook_url and not same_address(before.webhook_url, self._plan.wanted.webhook_url):
            body["webhookUrl"] = before.webhook_url
        await self._patch(body)
        told = await self._get()
        if contradicts(told, Integration(before.webhook_url, record.current.auth_type)):
            raise NotYetVisible("the former credential was put back, and GET does not show the former state yet")
        self._in_doubt = False
        self.record = await store.finish_rollback(self._lease, told)
        with suppress(Blocked):
            # What fails here is made good by close-overlaps.
            await self._hand_over()
        raise ReceiverRefused(
            "the receiver refused the new credential after the PATCH, so the former one was put back and read back"
        )

    # After

    async def _promote(self, told: Integration) -> None:
        if not self._store:
            return
        if not self._plan.rotates:
            self.record = await self._store.observe(self._lease, told)
            return
        keeps_overlap = self.record is not None and self.record.keeps_overlap
        overlap = self.row.overlap_kept if keeps_overlap else timedelta(0)
        until = datetime.now(UTC) + overlap if overlap is not None else None
        self.record = await self._store.promote(self._lease, told, until)
        if self.record.previous and until is None:
            self.record = await self._store.retire(self._lease)
        try:
            is_closed = await self._close_overlap() if self.record.previous and not overlap else await self._hand_over()
        except Blocked as blocked:
            # The receiver still has what it was given before the PATCH, and the new credential is among it.
            self._note(f"the receiver could not be told of the promotion: {blocked}")
            is_closed = False
        if not keeps_overlap and not is_closed:
            raise OldStillAccepted(
                f"the leaked credential was replaced; {self._still_accepted or 'the receiver was not told'}"
            )
        if self._still_accepted:
            self._note(self._still_accepted)
        if self._is_superseded:
            raise Blocked(
                "an interrupted rotation was finished with the value of that time",
                "Run the row once more for the new one.",
                counts=False,
            )

    async def close(self) -> None:
        """End an overlap that is over, once the former credential is proven dead; tell the receiver what it missed."""
        if self._store and not self.lease:
            raise Held("another run works on this project")
        record = self.record
        if record and record.step is Step.IDLE and record.current and not record.handed_over:
            await self._hand_over()
        until = record.overlap_until if record and record.previous and record.step is Step.IDLE else None
        if until is None or until > datetime.now(UTC):
            self.ended = self.result(Outcome.UNCHANGED)
        elif await self._close_overlap():
            self.ended = self.result(Outcome.UPDATED)
        else:
            raise OldStillAccepted(f"the overlap ended {until:%Y-%m-%d %H:%M} UTC; {self._still_accepted}")

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

    def standing(self, *, plan_only: bool, stopped_by: RowTrouble | None) -> RowResult:
        """The result as far as it is known now."""
        if self.ended:
            return self.ended
        if self.trouble:
            return self.failure(self.trouble)
        if self._in_doubt or self._echo:
            return self.result(Outcome.UNKNOWN, error=_INTERRUPTED, advice=Passing.advice)
        if self.plan_made and plan_only:
            return self.result(Outcome.PLANNED)
        if stopped_by:
            return self.result(
                Outcome.NOT_STARTED, error=f"the run was stopped: {stopped_by}", advice=stopped_by.advice
            )
        return self.result(Outcome.NOT_STARTED, error="the run ended before this row", advice="Run the row again.")

    def fail(self, trouble: RowTrouble) -> None:
        self.ended = self.failure(trouble)
        self._counts = trouble.counts

    def failure(self, trouble: RowTrouble) -> RowResult:
        if isinstance(trouble, Drifted):
            outcome = Outcome.DRIFTED
        elif isinstance(trouble, NotFound):
            outcome = Outcome.MISSING
        elif isinstance(trouble, ReceiverRefused | OldStillAccepted):
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
    def _caller(self) -> Caller | None:
        return ApiKey(self._tools.vault[self.row.api_key]) if self.row.api_key else None

    @property
    def _store(self) -> Store | None:
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
    def _credential(self) -> SecretStr:
        """The value to send: what is durable where there is a store, else what the reference holds."""
        if self.record and self.record.pending:
            return self.record.pending.value
        if self.row.authorization is None:
            raise AssertionError("unreachable: only a row with an authorization rotates")
        return self._tools.vault[self.row.authorization]


def document(record: Record) -> bytes:
    """What `publishTo` holds: the credentials the receiver should accept, as one JSON object."""
    overlaps = record.overlap_until is not None and record.overlap_until > datetime.now(UTC)
    slots = {"current": record.current, "pending": record.pending, "previous": record.previous if overlaps else None}
    return json.dumps(
        {"projectId": record.project_id} | {name: _exposed(each) for name, each in slots.items()}
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


def _is_earlier(one: Integration, other: Integration) -> bool:
    return bool(one.updated_at and other.updated_at and one.updated_at < other.updated_at)


def _moved(one: Integration, other: Integration) -> bool:
    return bool(one.updated_at and other.updated_at and one.updated_at != other.updated_at)
