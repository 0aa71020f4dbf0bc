"""A new signing secret: Jelou makes it, tells it once, and the former one is dead at once (page REGEN)."""

from typing import ClassVar

from pydantic import SecretStr

from jelou_rotation.errors import Blocked, RowTrouble, SigningSecretLost
from jelou_rotation.outcomes import Evidence, Outcome
from jelou_rotation.plan import Change, RowPlan
from jelou_rotation.probe import Answer
from jelou_rotation.row import Probe
from jelou_rotation.work import Work, to_its_end

_LOST = "Jelou was asked for a new signing secret, and its answer was lost; the former one may be dead"


class SigningSecretRotation(Work):
    """The rotation of one project's signing secret: in the record before anything else is done with it."""

    needs_store: ClassVar[bool] = True

    async def plan(self) -> None:
        seen = await self._get()
        change = Change("signingSecret", None, "a new one, and the former one is dead at once")
        self.plan_made = RowPlan(self.row, seen, seen, (change,), ("signingSecret",))

    async def apply(self) -> None:
        self._require_held()
        if not self._store:
            raise AssertionError("unreachable: needs_store")
        was_asked = self.record is not None and self.record.signing_asked
        self.record = await self._store.ask_signing_secret(self._lease)
        try:
            is_known = await to_its_end(self._renew())
        except RowTrouble as trouble:
            if self._in_doubt:
                # Not sent again by itself: each time it makes another one.
                raise SigningSecretLost(f"{_LOST} ({trouble})") from None
            if not was_asked:
                self.record = await self._store.forget_signing_question(self._lease)
            raise
        if is_known:
            await self._check_receiver()
            self.ended = self.result(Outcome.ROTATED)

    async def verify(self) -> None:
        """Nothing that Jelou tells shows a signing secret."""

    async def _renew(self) -> bool:
        """Ask for it, keep it, hand it over; whether all of that is done. The row stands as it is then."""
        request = self._tools.gateway.regenerate(self.row.project_id, self._caller, self._require_lease)
        self.record = await self._keep_secret_of(self._changing(request))
        self._in_doubt = False
        self._evidence = Evidence.ACCEPTED
        if self.record.signing_asked:
            self.fail(SigningSecretLost("Jelou made a new signing secret and did not tell it"))
            return False
        try:
            await self._hand_over()
        except Blocked as blocked:
            self.ended = self.result(
                Outcome.FAILED,
                error=f"the new signing secret is in the record, and the receiver could not be told: {blocked}",
                advice="Mend the block, then run jelou-rotation close-overlaps: it tells the receiver."
                " Until then deliveries may be lost.",
            )
            return False
        self.ended = self.result(Outcome.ROTATED)
        return True

    async def _check_receiver(self) -> None:
        """Whether the receiver accepts a delivery signed with the new secret."""
        if self.row.signing_secret:
            self._note(f"{self.row.signing_secret} holds the former signing secret: put the new one there")
        current = self.record.current if self.record else None
        if self.row.probing is Probe.OFF or not current:
            self._note("the receiver was not asked whether it knows the new signing secret")
            return
        verdict, _ = await self._probe(current.value, current.auth_type)
        if verdict.answer is not Answer.ACCEPTED:
            self._note(f"the receiver does not accept the new signing secret yet: {verdict.reason}")

    @property
    def _signing_secret(self) -> SecretStr | None:
        """The new one: a reference in the manifest still holds the former one."""
        return self.record.signing.value if self.record and self.record.signing else None
