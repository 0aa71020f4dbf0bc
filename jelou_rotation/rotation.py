"""The rows of one run: dealt out, kept count of, and what they work with."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pydantic import SecretStr

from jelou_rotation.approval import PlannedRow, planned_row
from jelou_rotation.errors import (
    Fault,
    KeyRefused,
    Passing,
    RowTrouble,
    SettingsError,
    Unreadable,
    UnresolvedReferences,
)
from jelou_rotation.gateway import ApiKey, Caller, ClientPair, Gateway
from jelou_rotation.life import Life
from jelou_rotation.outcomes import DONE, Moment, Outcome, RowResult
from jelou_rotation.plan import RowPlan
from jelou_rotation.probe import Prober
from jelou_rotation.references import Handler, Reference, Vault, resolve
from jelou_rotation.report_markdown import counted
from jelou_rotation.row import AuthType, Row
from jelou_rotation.settings import Settings, StoreSettings, as_reference
from jelou_rotation.work import LEASE_SECONDS, Orders, Publisher, Stop, Tools, Work

if TYPE_CHECKING:
    from jelou_rotation.records.store import Store

NO_ORDERS = Orders()


class Rotation:
    """
    The rows of one run and how far each has come.

    `plan` and `apply` work on some projects at a time, may be called again for the same ones, and then take up only
    what is not settled. `stopped_by` says why no further row begins, None while they do: a shared key that is refused,
    more than `max_failures` rows that need attention, or what `stop` was told. `timeline` says what happened when.
    """

    def __init__(  # noqa: PLR0913 - what a run is made of
        self,
        works: Iterable[Work],
        tools: Tools,
        *,
        plan_only: bool,
        concurrency: int = 128,
        max_failures: int | None = None,
        holder: str = "",
    ) -> None:
        self.stopped_by: Stop | None = None
        self.timeline: list[Moment] = []
        self._works = {work.row.project_id: work for work in works}
        self._tools = tools
        self._plan_only = plan_only
        self._slots = asyncio.Semaphore(concurrency)
        self._max_failures = max_failures
        self._failed: set[str] = set()
        self._elsewhere = (0, 0)
        self.holder = f"{socket.gethostname()}:{os.getpid()}{holder}"

    @property
    def requests(self) -> Mapping[str, int]:
        return dict(self._tools.gateway.counts)

    @property
    def store(self) -> "Store | None":
        return self._tools.store

    @property
    def project_ids(self) -> list[str]:
        return list(self._works)

    async def plan(self, project_ids: Sequence[str]) -> list[RowResult]:
        """
        Read each project and compare; nothing is written.

        Returns the rows that ended and need attention. Raises Passing while some row may succeed on another try.
        """
        works = [work for work in self._chosen(project_ids) if not work.plan_made and not work.ended]
        return await self._advance(works, lambda work: work.plan())

    async def apply(self, project_ids: Sequence[str]) -> list[RowResult]:
        """
        Do what was planned for each project and verify it.

        Returns the rows that ended and need attention. Raises Passing while some row may succeed on another try.
        """
        works = [work for work in self._chosen(project_ids) if not work.ended and work.is_ready]
        await self._hold([work for work in works if not work.lease])
        return await self._advance(works, lambda work: work.apply(), stops=True)

    async def verify(self, project_ids: Sequence[str]) -> list[RowResult]:
        """
        Look once more at projects that are done.

        Returns those that are no longer as they were. Raises Passing while some row may succeed on another try.
        """
        works = [work for work in self._chosen(project_ids) if work.ended and work.ended.outcome in DONE]
        return await self._advance(works, lambda work: work.verify(), stops=True)

    def give_up(self, project_ids: Sequence[str]) -> None:
        """What still was in trouble after the last try ended with it."""
        for work in self._chosen(project_ids):
            if work.trouble:
                self._fail(work, work.trouble)
                if work.is_ready:
                    self._stop_at_failures()

    def stop(self, reason: str, advice: str) -> None:
        """Begin no further row; those that have begun go on to their end."""
        self.stopped_by = self.stopped_by or Stop(reason, advice, is_final=False)

    def hear(self, done: int, failures: int) -> None:
        """So many steps are done, and so many rows need attention, in other processes that work for this run."""
        self._elsewhere = (done, failures)
        self._stop_at_failures()

    def share_budget(self, processes: int) -> None:
        """So many processes send requests for this run; together they keep to its bound."""
        self._tools.gateway.share_budget(processes)

    def settle(self, results: Iterable[RowResult], requests: Mapping[str, int]) -> None:
        """How rows ended in another process, and what it sent."""
        self._tools.gateway.counts.update(requests)
        for result in results:
            self._works[result.project_id].ended = result
            if result.outcome.is_as_wanted:
                self._failed.discard(result.project_id)
            else:
                self._failed.add(result.project_id)

    def lose(self, project_ids: Sequence[str], reason: str, *, had_begun: bool) -> None:
        """The process that was to work on these never said how they ended."""
        outcome = Outcome.UNKNOWN if had_begun else Outcome.NOT_STARTED
        advice = Passing.advice if had_begun else "Run the rows again."
        lost = [work for work in self._chosen(project_ids) if not work.ended]
        self.settle([work.result(outcome, error=reason, advice=advice) for work in lost], {})

    def note(self, text: str) -> None:
        """Put a moment on the time line."""
        self.timeline.append(Moment(datetime.now(UTC), text))

    def plans(self) -> list[RowPlan]:
        """What would be sent."""
        return [work.plan_made for work in self._works.values() if work.plan_made and not work.ended]

    def planned_rows(self) -> list[PlannedRow]:
        """The plan as a person approves it."""
        return [planned_row(work) for work in self._works.values()]

    def to_apply(self) -> list[str]:
        """The projects whose plan holds something to do."""
        return [key for key, work in self._works.items() if work.plan_made and not work.ended]

    def tagged(self, tag: str) -> set[str]:
        """The projects with this tag."""
        return {key for key, work in self._works.items() if tag in work.row.tags}

    def results(self) -> list[RowResult]:
        """How every row stands, in the manifest's order."""
        return [self._standing(work) for work in self._works.values()]

    @property
    def failures(self) -> int:
        """How many rows ended and need attention."""
        return max(len(self._failed), self._elsewhere[1])

    def failed_among(self, project_ids: Sequence[str]) -> int:
        """How many of these ended and need attention."""
        return len(self._failed.intersection(project_ids))

    def to_run_again(self) -> list[Row]:
        """The rows that are not as wanted."""
        return [work.row for work in self._works.values() if not self._standing(work).outcome.is_as_wanted]

    def steps_done(self) -> tuple[int, int]:
        """How many steps of how many are behind us: one a row to plan, one more to apply."""
        steps = 1 if self._plan_only else max((len(work.steps) for work in self._works.values()), default=1)
        done = sum(steps if work.ended else 1 if work.plan_made else 0 for work in self._works.values())
        return max(done, self._elsewhere[0]), steps * len(self._works)

    @asynccontextmanager
    async def kept_leases(self) -> AsyncIterator[None]:
        """Renew what this run holds for as long as it lives, and give it back at the end."""
        ending = asyncio.Event()
        keeper = asyncio.create_task(self._renew_until(ending))
        try:
            yield
        finally:
            # Told, not cancelled: a cancelled transaction would hold the database for others until it is found out.
            ending.set()
            await keeper
            await self._release(self._works.values())

    async def _renew_until(self, ending: asyncio.Event) -> None:
        while self._tools.store and not ending.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(ending.wait(), LEASE_SECONDS / 3)
            held = {key: work.lease for key, work in self._works.items() if work.lease}
            with suppress(RowTrouble):
                # A lease that is missing in the answer is lost; the next transition of its row says so.
                for key, lease in (await self._tools.store.renew(held)).items():
                    if self._works[key].lease:
                        self._works[key].renew(lease)

    def _chosen(self, project_ids: Sequence[str]) -> list[Work]:
        return [self._works[key] for key in project_ids]

    def _standing(self, work: Work) -> RowResult:
        return work.standing(plan_only=self._plan_only, stopped_by=self.stopped_by)

    async def _advance(
        self, works: list[Work], step: Callable[[Work], Awaitable[None]], *, stops: bool = False
    ) -> list[RowResult]:
        open_works = [work for work in works if not work.ended or work.ended.outcome in DONE]
        await asyncio.gather(*(self._work(work, step, stops=stops) for work in open_works))
        await self._release([work for work in works if work.ended])
        unsettled = [work.trouble for work in works if work.trouble]
        if unsettled and not self._ends_what_has_begun:
            raise Passing(f"{len(unsettled)} of {len(works)} not settled yet: {unsettled[0]}")
        results = [self._standing(work) for work in works if work.ended or self.stopped_by]
        return [result for result in results if not result.outcome.is_as_wanted]

    @property
    def _ends_what_has_begun(self) -> bool:
        return self.stopped_by is not None and self.stopped_by.is_final

    async def _hold(self, works: Sequence[Work]) -> None:
        """Take these records for this run, and read them again: another run may have been there since the plan."""
        if self.stopped_by:
            # What has met another run is tried again to its end, like all that has begun.
            works = [work for work in works if work.trouble]
        if not self._tools.store or not works:
            return
        by_id = {work.row.project_id: work for work in works}
        try:
            leases = await self._tools.store.take(by_id, self.holder, self._tools.run_id, LEASE_SECONDS)
            unreadable: dict[str, Unreadable] = {}
            records = await self._tools.store.read(leases, unreadable)
        except RowTrouble as trouble:
            for work in works:
                work.fail(trouble)
        else:
            for key, record in records.items():
                by_id[key].hold(leases[key], record)
            for key, spoiled in unreadable.items():
                by_id[key].fail(spoiled)

    async def _release(self, works: Iterable[Work]) -> None:
        held = [work for work in works if work.lease]
        if not self._tools.store or not held:
            return
        await asyncio.gather(*(work.note_failure() for work in held))
        with suppress(RowTrouble):
            await self._tools.store.release({work.row.project_id: work.lease for work in held if work.lease})
        for work in held:
            work.lease = None

    async def _work(self, work: Work, step: Callable[[Work], Awaitable[None]], *, stops: bool) -> None:
        async with self._slots:
            if self.stopped_by and (self.stopped_by.is_final or not work.trouble):
                return
            if work.trouble:
                self._tools.gateway.counts["retries"] += 1
            try:
                await step(work)
                work.trouble = None
            except Passing as trouble:
                work.trouble = trouble
            except RowTrouble as trouble:
                self._fail(work, trouble)
                if isinstance(trouble, KeyRefused) and not work.row.api_key:
                    self.stopped_by = Stop(str(trouble), trouble.advice)
            if work.ended and not work.ended.outcome.is_as_wanted:
                self._failed.add(work.row.project_id)
                if stops:
                    self._stop_at_failures()

    def _fail(self, work: Work, trouble: RowTrouble) -> None:
        work.trouble = None
        work.fail(trouble)
        self._failed.add(work.row.project_id)

    def _stop_at_failures(self) -> None:
        if self._max_failures is not None and self.failures > self._max_failures:
            need = "needs" if self.failures == 1 else "need"
            self.stop(
                f"{counted(self.failures, 'project')} {need} attention, max_failures allows {self._max_failures:,}",
                "Mend what the report names, then run the rows again.",
            )


@asynccontextmanager
async def open_store(settings: StoreSettings, handlers: Mapping[str, Handler]) -> AsyncIterator["Store"]:
    """The record store alone. Raises RefusedInput."""
    from jelou_rotation.records.store import Store  # noqa: PLC0415 - brings SQLAlchemy, for nothing without a store

    wanted = {ref: name for name, secret in settings.secrets().items() if (ref := as_reference(secret))}
    vault = await resolve(wanted, handlers)
    if settings.store_key is None:
        raise SettingsError([Fault("JELOU_STORE_KEY", "missing; it is what the record store is encrypted with")])
    url = _value(settings.store_url, vault).get_secret_value()
    async with Store.open(url, _value(settings.store_key, vault)) as store:
        yield store


@asynccontextmanager
async def open_gateway(settings: Settings, handlers: Mapping[str, Handler]) -> AsyncIterator[Gateway]:
    """The gateway alone. Raises RefusedInput."""
    vault = await resolve(wanted_references(settings, ()), handlers)
    async with _gateway(settings, vault) as gateway:
        yield gateway


@asynccontextmanager
async def open_rotation(  # noqa: PLR0913 - what a run is made of
    settings: Settings,
    rows: Sequence[Row],
    handlers: Mapping[str, Handler],
    *,
    plan_only: bool,
    run_id: str = "",
    publish: Publisher | None = None,
    orders: Orders = NO_ORDERS,
    kind: type[Work] = Life,
    max_failures: int | None = None,
    holder: str = "",
) -> AsyncIterator[Rotation]:
    """
    A rotation that is ready to begin: every reference resolved, the store and the client open.

    `handlers` read the values behind references, by scheme; `publish` writes what `publishTo` names; `kind` is what is
    done with each row; `holder` tells this process from others of the same run.
    Raises RefusedInput before anything is sent.
    """
    wanted = wanted_references(settings, rows)
    vault = await resolve(wanted, handlers)
    check_credentials(rows, vault)
    async with AsyncExitStack() as stack:
        needs_store = kind.needs_store or orders.create or any(row.needs_record for row in rows)
        store = await _open_store(stack, settings, vault, plan_only=plan_only, required=needs_store)
        gateway = await stack.enter_async_context(_gateway(settings, vault))
        prober = await stack.enter_async_context(Prober(allow_private_hosts=settings.allow_private_hosts))
        tools = Tools(gateway, vault, prober, publish or _nowhere, run_id, store, orders)
        unreadable: dict[str, Unreadable] = {}
        records = await store.read((row.project_id for row in rows), unreadable) if store else {}
        works = [kind(row, tools, records.get(row.project_id)) for row in rows]
        for work in works:
            if trouble := unreadable.get(work.row.project_id):
                work.fail(trouble)
        rotation = Rotation(
            works,
            tools,
            plan_only=plan_only,
            concurrency=settings.concurrency,
            max_failures=max_failures,
            holder=holder,
        )
        async with rotation.kept_leases():
            yield rotation


async def _open_store(
    stack: AsyncExitStack, settings: Settings, vault: Vault, *, plan_only: bool, required: bool
) -> "Store | None":
    if settings.store_key is None:
        if required:
            message = (
                "missing; generate, publishTo, overlap and signing secrets need a record:"
                " jelou-rotation store key makes one"
            )
            raise SettingsError([Fault("JELOU_STORE_KEY", message)])
        return None
    from jelou_rotation.records.store import Store  # noqa: PLC0415 - brings SQLAlchemy, for nothing without a store

    url = _value(settings.store_url, vault).get_secret_value()
    if plan_only and not Store.exists(url):
        # A plan writes nothing, not even an empty store.
        return None
    return await stack.enter_async_context(Store.open(url, _value(settings.store_key, vault)))


def _gateway(settings: Settings, vault: Vault) -> Gateway:
    return Gateway(
        settings.base_url,
        _shared_caller(settings, vault),
        concurrency=settings.concurrency,
        timeout_seconds=settings.timeout_seconds,
        requests_per_second=settings.requests_per_second,
    )


async def _nowhere(_target: str, _document: bytes) -> None:
    raise LookupError("nothing here can write blocks")


def check_credentials(rows: Iterable[Row], vault: Vault) -> None:
    """Raises UnresolvedReferences for every value that Jelou could not present as its authType says (page HMAC)."""
    faults = [
        Fault(str(row.authorization), fault, field=f"authorization of {row.project_id}")
        for row in rows
        if row.authorization
        and not row.generates
        and (fault := _unpresentable(row.auth_type, vault[row.authorization].get_secret_value()))
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
        asked = {"apiKey": row.api_key, "signingSecret": row.signing_secret}
        if not row.generates:
            asked["authorization"] = row.authorization
        for field, reference in asked.items():
            if reference:
                wanted.setdefault(reference, f"{field} of {row.project_id}")
    return wanted


def _shared_caller(settings: Settings, vault: Vault) -> Caller:
    if settings.api_key:
        return ApiKey(_value(settings.api_key, vault))
    if settings.client_id and settings.client_secret:
        return ClientPair(_value(settings.client_id, vault), _value(settings.client_secret, vault))
    raise AssertionError("unreachable: Settings.load() refuses to have neither")


def _value(secret: SecretStr, vault: Vault) -> SecretStr:
    reference = as_reference(secret)
    return vault[reference] if reference else secret
