"""
The life of a row.

    plan -> hold -> drift guard -> stage -> hand over -> preflight probe
         -> PATCH -> echo -> read back -> receiver probe -> promote -> overlap -> retire

Each step first looks whether it is already done, so a row can be taken up again after any trouble, in this process or
in the next one, and is always finished with the same value. A credential is durable before its PATCH, an unclear
answer is settled by GET and by sending the same value again, and what somebody else wrote is not overwritten unless
the operator named the project.
"""

from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from pydantic import SecretStr

from jelou_rotation.errors import (
    Blocked,
    Drifted,
    InvalidRequest,
    NotFound,
    NotYetVisible,
    OldStillAccepted,
    ReceiverRefused,
    RowTrouble,
    SigningSecretLost,
)
from jelou_rotation.gateway import Integration
from jelou_rotation.generation import generate
from jelou_rotation.outcomes import Evidence, Outcome
from jelou_rotation.plan import Change, contradicts, moved, plan_row, same_address, unconfirmed
from jelou_rotation.probe import Answer, Verdict
from jelou_rotation.records import Record, Step
from jelou_rotation.row import AuthType, Probe, Row
from jelou_rotation.work import Tools, Work, to_its_end


class Life(Work):
    """The rotation of one row."""

    def __init__(self, row: Row, tools: Tools, record: Record | None = None) -> None:
        super().__init__(row, tools, record)
        self._echo: Integration | None = None
        self._verified = Integration()
        self._is_staged = False
        # The integration that this run creates is there.
        self._is_there = False
        # What is finished here is not what the row asks for now.
        self._is_superseded = False
        self._accepted_before: bool | None = None

    # Plan

    async def plan(self) -> None:
        """Read the integration and compare; nothing is written. A row that is not due is not even read."""
        self._require_unparked()
        if self._is_of_this_run and self.record and self.record.step is Step.IDLE:
            await self._look_again(self.record)
            return
        if self._is_settled_by_record():
            self.ended = self.result(Outcome.NOT_DUE)
            return
        found = await self._find()
        seen = found or Integration()
        was_sent = self.record is not None and self.record.step in {Step.SENT, Step.ROLLING_BACK}
        plan = plan_row(
            self.row,
            seen,
            rotates=self._is_due(seen) if found else self.row.authorization is not None,
            knows_former=self._knows_former,
            before=self.record.integration if was_sent and self.record else None,
            creates=found is None,
        )
        if plan.rotates and found:
            self._require_closed_overlap()
        if self._owes_signing_secret:
            owed = Change("publishTo", "without the signing secret", str(self.row.publish_to), can_be_undone=True)
            plan = replace(plan, changes=(*plan.changes, owed))
        self.plan_made = plan
        if not plan.sends and not self._owes_signing_secret:
            self._evidence = Evidence.READ_BACK
            self._require_signing_secret()
            self.ended = self.result(Outcome.NOT_DUE if self.row.generates else Outcome.UNCHANGED)

    async def _look_again(self, record: Record) -> None:
        """An earlier try of this run has rotated it, and it is never rotated twice: due or not, leaked or not."""
        told, seen = await self._get(), record.integration or Integration()
        if contradicts(told, Integration(self.row.webhook_url, self.row.auth_type)) or moved(told, seen):
            raise Drifted("an earlier try of this run rotated it, and then somebody else changed the integration")
        if self._tools.orders.leaked and record.previous:
            raise OldStillAccepted("the leaked credential was replaced by an earlier try of this run")
        self._evidence = Evidence.READ_BACK
        self._note("rotated by an earlier try of this run, which ended before it could report it")
        self.ended = self.result(Outcome.ROTATED)

    @property
    def _is_of_this_run(self) -> bool:
        """Whether what is pending, or else current, was made by this run."""
        made_in = self.record.made_in if self.record else None
        return made_in is not None and made_in == self._tools.run_id and not self._tools.orders.create

    async def _find(self) -> Integration | None:
        """The integration; None where there is none and this run may create it."""
        try:
            return await self._get()
        except NotFound:
            if not self._tools.orders.create:
                raise
        if not self.row.webhook_url:
            raise Blocked(
                "there is no integration yet, and the row has no webhookUrl to create one with",
                "Give the row a webhookUrl, then run it again.",
                counts=False,
            )
        return None

    def _require_signing_secret(self) -> None:
        if self._tools.orders.create and self.record and self.record.signing_asked:
            raise SigningSecretLost("Jelou created the integration, and its answer with the signing secret was lost")

    @property
    def _owes_signing_secret(self) -> bool:
        """A run that created this integration ended before the receiver was told its signing secret."""
        owes = self.record is not None and self.record.signing is not None and not self.record.handed_over
        return owes and self._tools.orders.create and self.row.publish_to is not None

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
    def _is_unfinished(self) -> bool:
        return self.record is not None and self.record.step is not Step.IDLE

    def _is_settled_by_record(self) -> bool:
        """Made here, young enough, and nothing else in the row differs from what was last seen: no request needed."""
        if not self.row.generates or self._is_unfinished or self._is_old() or self._tools.orders.create:
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
        return is_new or self._is_of_another_type(seen) or moved(seen, self.record.integration or Integration())

    # Apply

    async def apply(self) -> None:
        """Send what was planned and verify it."""
        try:
            await self._apply()
        except NotFound:
            if not self._is_there:
                raise
            raise NotYetVisible("Jelou created the integration, and still answers that there is none") from None

    async def _apply(self) -> None:
        await self._require_hold()
        if self.ended:
            return
        if self.record and self.record.step is Step.ROLLING_BACK:
            await self._put_back()
        if not self._echo:
            seen = await (self._guard_creation() if self._plan.creates and not self._is_there else self._guard())
            if self._owes_signing_secret:
                await self._hand_over()
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
        self._require_signing_secret()
        done = Outcome.ROTATED if self._plan.rotates else Outcome.UPDATED
        self.ended = self.result(Outcome.CREATED if self._plan.creates else done)

    async def verify(self) -> None:
        """Look once more at a row that is done: Jelou and the receiver still say what they said. Raises RowTrouble."""
        told = await self._get()
        if contradicts(told, self._plan.wanted) or moved(told, self._verified):
            raise Drifted("verified once, and then somebody else changed the integration")
        current = self.record.current if self.record else None
        if self._plan.rotates and self.row.probing is not Probe.OFF and current:
            verdict, _ = await self._probe(current.value, current.auth_type)
            if verdict.answer is Answer.REFUSED:
                raise ReceiverRefused(f"accepted once, and now the receiver refuses the credential ({verdict.reason})")

    async def _require_hold(self) -> None:
        """Nothing is sent for a record that another run has; what it did meanwhile is planned for anew."""
        self._require_held()
        if self._is_outdated:
            await self.plan()
            self._is_outdated = False

    async def _guard_creation(self) -> Integration:
        """Before the POST there is still no integration. After one that went unanswered GET decides: never a second."""
        try:
            told = await self._get()
        except NotFound:
            if not self._in_doubt:
                return Integration()
            raise NotYetVisible("the POST was not answered, and GET shows no integration yet") from None
        if not self.record or not self.record.signing_asked:
            raise Drifted("somebody else created the integration since it was planned, and it was left as it is")
        self._is_there = True
        return told

    async def _guard(self) -> Integration:
        """Before each PATCH: nobody else wrote. After one that went unanswered, ours counts as nobody else's."""
        told = await self._get()
        was_sent = self.record is not None and self.record.step in {Step.SENT, Step.ROLLING_BACK}
        before = self._plan.before
        is_ours = (was_sent or self._in_doubt) and not contradicts(told, self._plan.wanted)
        is_foreign = contradicts(told, before) or (not (was_sent or self._in_doubt) and moved(told, before))
        if is_foreign and not is_ours:
            self._overwrite(told)
        return told

    def _overwrite(self, told: Integration) -> None:
        """Only by order: the row is planned for once more, from what is there now."""
        if self.row.project_id not in self._tools.orders.overwrite_drift:
            raise Drifted("somebody else changed the integration since it was planned, and it was left as it is")
        self.plan_made = plan_row(self.row, told, rotates=self._plan.rotates, knows_former=self._knows_former)
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
            is_leaked = leaked and not self._is_of_this_run
            self._is_superseded = pending.auth_type != self.row.auth_type or (
                is_leaked if generates else pending.fingerprint != self._store.fingerprint(value)
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
            if self._plan.creates and not self._is_there:
                await self._create(body)
            # Also after a POST: the prose of page CREATE does not know authType and authorization.
            told = await self._changing(
                self._tools.gateway.patch(self.row.project_id, body, self._caller, self._require_lease)
            )
        except RowTrouble:
            if not self._in_doubt and not was_sent and self._store and self._plan.rotates:
                # Refused for certain: the value may be replaced by another one.
                self.record = await self._store.mark_unsent(self._lease)
            raise
        is_echo = bool(told.webhook_url) and not contradicts(told, self._plan.wanted)
        self._evidence = Evidence.ECHOED if is_echo and not _is_earlier(told, self._plan.seen) else Evidence.ACCEPTED
        return told

    async def _create(self, body: dict[str, str]) -> None:
        """The one POST. Its answer holds the signing secret, which is durable and handed over before anything else."""
        if not self._store:
            raise AssertionError("unreachable: nothing is created without a store")
        was_asked = self.record is not None and self.record.signing_asked
        self.record = await self._store.ask_signing_secret(self._lease)
        try:
            self.record = await to_its_end(self._keep_secret_of(self._post(body)))
        except RowTrouble:
            if not self._in_doubt and not was_asked:
                self.record = await self._store.forget_signing_question(self._lease)
            raise
        self._is_there = True
        await self._hand_over()

    async def _post(self, body: dict[str, str]) -> SecretStr | None:
        request = self._tools.gateway.create(self.row.project_id, body, self._caller, self._require_lease)
        try:
            return (await self._changing(request)).signing_secret
        except NotFound:
            raise InvalidRequest("Jelou answered 404 to POST: there is no such project") from None

    async def _read_back(self) -> Integration:
        plan, told, echo = self._plan, await self._get(), self._echo or Integration()
        if contradicts(told, plan.wanted):
            if contradicts(told, plan.before):
                raise Drifted("Jelou accepted our PATCH, and GET shows what neither we nor the former state had")
            raise NotYetVisible("Jelou accepted our PATCH, and GET still shows the former state")
        if _is_earlier(told, echo):
            raise NotYetVisible("Jelou accepted our PATCH, and GET answers from before it (updatedAt)")
        self._verified = told
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
        await self._changing(self._tools.gateway.patch(self.row.project_id, body, self._caller, self._require_lease))
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
            # Where Jelou does not tell the authType, the one that was sent is the one it has.
            seen = replace(told, auth_type=told.auth_type or self._plan.wanted.auth_type)
            self.record = await self._store.observe(self._lease, seen)
            return
        keeps_overlap = self.record is not None and self.record.keeps_overlap
        overlap = self.row.overlap_kept if keeps_overlap else timedelta(0)
        until = datetime.now(UTC) + overlap if overlap is not None else None
        self.record = await self._store.promote(self._lease, told, until, not self._is_superseded)
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

    @property
    def _knows_former(self) -> bool:
        """Whether our record has the credential that Jelou presents now."""
        if not self.record or not self.record.current:
            return False
        return self.record.integration is None or self.record.integration.auth_type != AuthType.NO_AUTH

    @property
    def _is_unsettled(self) -> bool:
        return self._in_doubt or self._echo is not None

    @property
    def _credential(self) -> SecretStr:
        """The value to send: what is durable where there is a store, else what the reference holds."""
        if self.record and self.record.pending:
            return self.record.pending.value
        if self.row.authorization is None:
            raise AssertionError("unreachable: only a row with an authorization rotates")
        return self._tools.vault[self.row.authorization]


def _is_earlier(one: Integration, other: Integration) -> bool:
    return bool(one.updated_at and other.updated_at and one.updated_at < other.updated_at)
