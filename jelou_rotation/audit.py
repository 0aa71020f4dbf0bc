"""What is declared, what Jelou has and what the record says, held against each other. Nothing is written anywhere."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import ClassVar

from jelou_rotation.errors import SigningSecretLost
from jelou_rotation.gateway import Integration
from jelou_rotation.outcomes import Evidence, Outcome
from jelou_rotation.plan import contradicts, moved, plan_row, unconfirmed
from jelou_rotation.probe import Answer
from jelou_rotation.records import Record, Step
from jelou_rotation.report_markdown import counted
from jelou_rotation.row import AuthType, Probe
from jelou_rotation.work import Work

# A rotation that is due waits for the next scheduled run.
_GRACE_SHARE = 0.25
_GRACE = timedelta(days=1)

_GRAVITY = (Outcome.DRIFTED, Outcome.FAILED, Outcome.OVERDUE)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as declared."""

    outcome: Outcome
    sentence: str
    advice: str


class Audit(Work):
    """One project under audit; the gravest finding decides how the row ends, and all of them are told."""

    steps: ClassVar[tuple[str, ...]] = ("plan",)

    async def plan(self) -> None:
        told = await self._get()
        if self._store and self._has_moved(told):
            # A rotation may have been at work on it since this audit began.
            self.record = (await self._store.read([self.row.project_id])).get(self.row.project_id)
        self._evidence = Evidence.READ_BACK
        self.plan_made = plan_row(self.row, told, rotates=False)
        self._unconfirmed = unconfirmed(told, self.plan_made.wanted)
        findings = [*self._drift(told), *(_unfinished(self.record) if self.record else ()), *self._overdue()]
        findings += await self._receiver()
        if not findings:
            self.ended = self.result(Outcome.UNCHANGED)
            return
        self.ended = self.result(
            min((finding.outcome for finding in findings), key=_GRAVITY.index),
            error="; ".join(finding.sentence for finding in findings),
            advice=" ".join(finding.advice for finding in findings),
        )

    async def apply(self) -> None:
        """Nothing to do: an audit only reads."""

    def _drift(self, told: Integration) -> Iterator[Finding]:
        if contradicts(told, Integration(self.row.webhook_url, self.row.auth_type)):
            yield Finding(
                Outcome.DRIFTED,
                "Jelou has another webhookUrl or authType than the manifest",
                "Find out who changed it; jelou-rotation rotate brings it in line.",
            )
        if self._has_moved(told):
            yield Finding(
                Outcome.DRIFTED,
                "somebody changed the integration since the last run here",
                "Find out who did, and whether the credential is still ours: a rotation sets it anew.",
            )

    def _has_moved(self, told: Integration) -> bool:
        """Without a credential no run would send anything for it, and so it would be told for ever."""
        known = self.record.integration if self.record and self.record.step is Step.IDLE else None
        return bool(known and self.row.authorization and (contradicts(told, known) or moved(told, known)))

    def _overdue(self) -> Iterator[Finding]:
        if not self.row.authorization or not (self._store or self.row.needs_record):
            return
        rotate = "Run jelou-rotation rotate, and look why the scheduled rotation did not."
        current = self.record.current if self.record else None
        if not current:
            yield Finding(Outcome.OVERDUE, "no credential was ever rotated here", rotate)
        elif self._store and not self.row.generates:
            if self._store.fingerprint(self._tools.vault[self.row.authorization]) != current.fingerprint:
                yield Finding(
                    Outcome.OVERDUE, f"{self.row.authorization} holds a credential Jelou does not have", rotate
                )
        elif every := self.row.rotate_every:
            late = datetime.now(UTC) - current.made_at - every
            if late > every * _GRACE_SHARE + _GRACE:
                yield Finding(Outcome.OVERDUE, f"the rotation is {counted(late.days, 'day')} late", rotate)

    async def _receiver(self) -> list[Finding]:
        current = self.record.current if self.record else None
        if self.row.probing is Probe.OFF or self.row.auth_type is AuthType.NO_AUTH or not current:
            return []
        verdict, random = await self._probe(current.value, current.auth_type)
        if random.answer is Answer.ACCEPTED:
            return [
                Finding(
                    Outcome.FAILED,
                    "the receiver does not check: it accepts a random credential",
                    "Make the receiver refuse what it does not know.",
                )
            ]
        if verdict.answer is Answer.REFUSED:
            return [
                Finding(
                    Outcome.FAILED,
                    f"the receiver refuses the credential Jelou was given ({verdict.reason})",
                    "Hurry, messages may be lost: make the receiver accept what jelou-rotation credential show prints.",
                )
            ]
        if verdict.answer is Answer.ACCEPTED and random.answer is Answer.REFUSED:
            self._evidence = Evidence.RECEIVER_CHECKED
        elif verdict.answer is not Answer.ACCEPTED:
            self._note(f"the receiver could not be checked: {verdict.reason}")
        return []


def _unfinished(record: Record) -> Iterator[Finding]:
    """What the record says is not finished."""
    now = datetime.now(UTC)
    is_at_work = record.held_until is not None and record.held_until > now
    if record.step is not Step.IDLE and not is_at_work:
        again = "Run the row again: it goes on from what the record says."
        yield Finding(Outcome.OVERDUE, "a rotation was interrupted and is not finished", again)
    if record.parked:
        unpark = f"Mend the cause the last reports name, then: jelou-rotation unpark {record.project_id}"
        yield Finding(Outcome.FAILED, f"parked after {record.failures} failures in a row", unpark)
    if record.previous and record.overlap_until and record.overlap_until < now:
        ended = f"the overlap ended {record.overlap_until:%Y-%m-%d %H:%M} UTC and the former credential is not retired"
        yield Finding(Outcome.OVERDUE, ended, "Run jelou-rotation close-overlaps: it says what the receiver does.")
    if record.signing_asked:
        lost = "the signing secret was lost on its way here"
        yield Finding(Outcome.FAILED, lost, SigningSecretLost.advice)
