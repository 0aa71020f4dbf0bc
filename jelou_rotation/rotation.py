"""
The life of a row: read, plan, PATCH, echo, read back.

Each step first looks whether it is already done, so a row can be taken up again after any trouble and is always
finished with the same value. A PATCH without a clear answer is settled by GET and by sending the same value again.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from pydantic import SecretStr

from jelou_rotation.errors import (
    Drifted,
    Fault,
    GatewayError,
    KeyRefused,
    NotFound,
    NotYetVisible,
    Passing,
    UnresolvedReferences,
)
from jelou_rotation.gateway import ApiKey, Caller, ClientPair, Gateway, Integration
from jelou_rotation.manifest import AuthType, Row
from jelou_rotation.outcomes import Evidence, Outcome, RowResult
from jelou_rotation.pacing import Pace
from jelou_rotation.plan import RowPlan, contradicts, plan_row, unconfirmed
from jelou_rotation.references import Handler, Reference, Vault, resolve
from jelou_rotation.settings import Settings, as_reference

_INTERRUPTED = "the run ended before this row was verified"


@dataclass(slots=True)
class _Progress:
    """How far one row has come."""

    row: Row
    plan: RowPlan | None = None
    attempts: int = 0
    # A PATCH left and no answer has settled yet what became of it.
    in_doubt: bool = False
    echo: Integration | None = None
    evidence: Evidence | None = None
    trouble: Passing | None = None
    ended: RowResult | None = None

    def result(
        self,
        outcome: Outcome,
        *,
        unconfirmed: tuple[str, ...] = (),
        error: str | None = None,
        advice: str | None = None,
    ) -> RowResult:
        changes = self.plan.changes if self.plan else ()
        return RowResult(
            self.row.project_id, outcome, self.evidence, changes, self.attempts, unconfirmed, error, advice
        )


class Rotation:
    """
    The rows of one run and how far each has come.

    `plan` and `apply` work on some projects at a time, may be called again for the same ones, and then take up only
    what is not settled. A shared key that is refused stops the run: `stopped_by` says why, and no further row begins.
    """

    def __init__(
        self, gateway: Gateway, rows: Iterable[Row], vault: Vault, *, plan_only: bool, concurrency: int = 32
    ) -> None:
        self.gateway = gateway
        self.stopped_by: KeyRefused | None = None
        self._rows = {row.project_id: _Progress(row) for row in rows}
        self._vault = vault
        self._plan_only = plan_only
        self._slots = asyncio.Semaphore(concurrency)

    async def plan(self, project_ids: Sequence[str]) -> list[RowResult]:
        """
        Read each project and compare; nothing is written.

        Returns the rows that ended and need attention. Raises Passing while some row may succeed on another try.
        """
        return await self._advance([self._rows[key] for key in project_ids if not self._rows[key].plan], self._plan)

    async def apply(self, project_ids: Sequence[str]) -> list[RowResult]:
        """
        Send what was planned for each project and verify it.

        Returns the rows that ended and need attention. Raises Passing while some row may succeed on another try.
        """
        return await self._advance([self._rows[key] for key in project_ids if self._rows[key].plan], self._apply)

    def to_apply(self) -> list[str]:
        """The projects whose plan holds something to send."""
        return [key for key, progress in self._rows.items() if progress.plan and not progress.ended]

    def results(self) -> list[RowResult]:
        """How every row stands, in the manifest's order."""
        return [self._standing(progress) for progress in self._rows.values()]

    def to_run_again(self) -> list[Row]:
        """The rows that are not as wanted."""
        return [p.row for p in self._rows.values() if not self._standing(p).outcome.is_as_wanted]

    def steps_done(self) -> tuple[int, int]:
        """How many steps of how many are behind us: one a row to plan, one more to apply."""
        steps = 1 if self._plan_only else 2
        done = sum(steps if p.ended else 1 if p.plan else 0 for p in self._rows.values())
        return done, steps * len(self._rows)

    async def _advance(self, rows: list[_Progress], step: Callable[[_Progress], Awaitable[None]]) -> list[RowResult]:
        await asyncio.gather(*(self._work(progress, step) for progress in rows if not progress.ended))
        unsettled = [p.trouble for p in rows if p.trouble and not p.ended]
        if unsettled and not self.stopped_by:
            raise Passing(f"{len(unsettled)} of {len(rows)} not settled yet: {unsettled[0]}")
        results = [self._standing(p) for p in rows if p.ended or self.stopped_by]
        return [result for result in results if not result.outcome.is_as_wanted]

    async def _work(self, progress: _Progress, step: Callable[[_Progress], Awaitable[None]]) -> None:
        async with self._slots:
            if self.stopped_by:
                return
            if progress.trouble:
                self.gateway.counts["retries"] += 1
            try:
                await step(progress)
                progress.trouble = None
            except Passing as error:
                progress.trouble = error
            except GatewayError as error:
                progress.ended = _failure(progress, error)
                if isinstance(error, KeyRefused) and not progress.row.api_key:
                    self.stopped_by = error

    async def _plan(self, progress: _Progress) -> None:
        row = progress.row
        progress.plan = plan_row(row, await self.gateway.get(row.project_id, self._caller(row)))
        if not progress.plan.sends:
            progress.evidence = Evidence.READ_BACK
            progress.ended = progress.result(Outcome.UNCHANGED)

    async def _apply(self, progress: _Progress) -> None:
        if progress.in_doubt and not progress.echo:
            await self._look(progress)
        if not progress.echo:
            progress.echo = await self._send(progress)
        await self._read_back(progress)

    async def _look(self, progress: _Progress) -> None:
        """After a PATCH without a clear answer: it is ours or the former state, or somebody else wrote."""
        plan, told = _planned(progress), await self._get(progress)
        if contradicts(told, plan.wanted) and contradicts(told, plan.seen):
            raise Drifted("after our PATCH went unanswered, GET shows neither the former state nor ours")

    async def _send(self, progress: _Progress) -> Integration:
        plan, doubted = _planned(progress), progress.in_doubt
        progress.attempts += 1
        progress.in_doubt = True
        try:
            told = await self.gateway.patch(progress.row.project_id, plan.body(self._vault), self._caller(progress.row))
        except GatewayError as error:
            progress.in_doubt = doubted or error.may_have_acted
            raise
        progress.evidence = Evidence.ECHOED if _is_echo(told, plan) else Evidence.ACCEPTED
        return told

    async def _read_back(self, progress: _Progress) -> None:
        plan, told, echo = _planned(progress), await self._get(progress), progress.echo or Integration()
        if contradicts(told, plan.wanted):
            if contradicts(told, plan.seen):
                raise Drifted("Jelou accepted our PATCH, and GET shows what neither we nor the former state had")
            raise NotYetVisible("Jelou accepted our PATCH, and GET still shows the former state")
        if _is_earlier(told, echo):
            raise NotYetVisible("Jelou accepted our PATCH, and GET answers from before it (updatedAt)")
        missing = unconfirmed(told, plan.wanted)
        if progress.attempts == 1 and _is_earlier(echo, told):
            # One PATCH of ours, and the record is younger than its answer: perhaps somebody wrote after us.
            missing += ("updatedAt",)
        else:
            progress.evidence = Evidence.READ_BACK
        outcome = Outcome.ROTATED if "authorization" in plan.sends else Outcome.UPDATED
        progress.ended = progress.result(outcome, unconfirmed=missing)

    async def _get(self, progress: _Progress) -> Integration:
        return await self.gateway.get(progress.row.project_id, self._caller(progress.row))

    def _caller(self, row: Row) -> Caller | None:
        return ApiKey(self._vault[row.api_key]) if row.api_key else None

    def _standing(self, progress: _Progress) -> RowResult:
        if progress.ended:
            return progress.ended
        if progress.trouble:
            return _failure(progress, progress.trouble)
        if progress.in_doubt:
            return progress.result(Outcome.UNKNOWN, error=_INTERRUPTED, advice=Passing.advice)
        if progress.plan and self._plan_only:
            return progress.result(Outcome.PLANNED)
        if self.stopped_by:
            return progress.result(
                Outcome.NOT_STARTED, error=f"the run was stopped: {self.stopped_by}", advice=self.stopped_by.advice
            )
        return progress.result(Outcome.NOT_STARTED, error="the run ended before this row", advice="Run the row again.")


@asynccontextmanager
async def open_rotation(
    settings: Settings, rows: Sequence[Row], handlers: Mapping[str, Handler], *, plan_only: bool
) -> AsyncIterator[Rotation]:
    """
    A rotation that is ready to begin: every reference resolved, the client open.

    `handlers` read the values behind references, by scheme. Raises UnresolvedReferences before anything is sent.
    """
    vault = await resolve(wanted_references(settings, rows), handlers)
    check_credentials(rows, vault)
    async with Gateway(
        settings.base_url,
        _shared_caller(settings, vault),
        concurrency=settings.concurrency,
        timeout_seconds=settings.timeout_seconds,
        pace=Pace(settings.requests_per_second),
    ) as gateway:
        yield Rotation(gateway, rows, vault, plan_only=plan_only, concurrency=settings.concurrency)


def check_credentials(rows: Iterable[Row], vault: Vault) -> None:
    """Raises UnresolvedReferences for every value that Jelou could not present as its authType says (page HMAC)."""
    faults = [
        Fault(str(row.authorization), fault, field=f"authorization of {row.project_id}")
        for row in rows
        if row.authorization and (fault := _unpresentable(row.auth_type, vault[row.authorization].get_secret_value()))
    ]
    if faults:
        raise UnresolvedReferences(faults)


def _unpresentable(auth_type: AuthType | None, value: str) -> str | None:
    if value.lower().startswith((f"{AuthType.BEARER} ", f"{AuthType.BASIC} ")):
        return "begins with the scheme's name, which Jelou adds itself: store the bare value"
    if auth_type in {AuthType.BEARER, AuthType.API_KEY} and not value.isascii():
        return "holds a character outside ASCII, which cannot travel in a header"
    return None


def wanted_references(settings: Settings, rows: Iterable[Row]) -> dict[Reference, str]:
    """Every reference of a run, and in words who asks for it."""
    wanted: dict[Reference, str] = {}
    for name, secret in settings.secrets().items():
        if reference := as_reference(secret):
            wanted.setdefault(reference, name)
    for row in rows:
        for field, reference in (("authorization", row.authorization), ("apiKey", row.api_key)):
            if reference:
                wanted.setdefault(reference, f"{field} of {row.project_id}")
    return wanted


def _shared_caller(settings: Settings, vault: Vault) -> Caller:
    def value(secret: SecretStr) -> SecretStr:
        reference = as_reference(secret)
        return vault[reference] if reference else secret

    if settings.api_key:
        return ApiKey(value(settings.api_key))
    if settings.client_id and settings.client_secret:
        return ClientPair(value(settings.client_id), value(settings.client_secret))
    raise AssertionError("unreachable: Settings.load() refuses to have neither")


def _planned(progress: _Progress) -> RowPlan:
    if progress.plan is None:
        raise AssertionError("unreachable: apply() takes only rows with a plan")
    return progress.plan


def _is_echo(told: Integration, plan: RowPlan) -> bool:
    return bool(told.webhook_url) and not contradicts(told, plan.wanted) and not _is_earlier(told, plan.seen)


def _is_earlier(one: Integration, other: Integration) -> bool:
    return bool(one.updated_at and other.updated_at and one.updated_at < other.updated_at)


def _failure(progress: _Progress, error: GatewayError) -> RowResult:
    if isinstance(error, Drifted):
        outcome = Outcome.DRIFTED
    elif isinstance(error, NotFound):
        outcome = Outcome.MISSING
    else:
        outcome = Outcome.UNKNOWN if progress.in_doubt else Outcome.FAILED
    return progress.result(outcome, error=str(error), advice=error.advice)
