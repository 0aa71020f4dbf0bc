"""The rows of one run: dealt out, kept count of, and what they work with."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress

from pydantic import SecretStr

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
from jelou_rotation.life import LEASE_SECONDS, Life, Orders, Publisher, Tools
from jelou_rotation.outcomes import RowResult
from jelou_rotation.pacing import Pace
from jelou_rotation.probe import Prober
from jelou_rotation.records import Store
from jelou_rotation.references import Handler, Reference, Vault, resolve
from jelou_rotation.row import AuthType, Row
from jelou_rotation.settings import Settings, StoreSettings, as_reference

NO_ORDERS = Orders()


class Rotation:
    """
    The rows of one run and how far each has come.

    `plan` and `apply` work on some projects at a time, may be called again for the same ones, and then take up only
    what is not settled. A shared key that is refused stops the run: `stopped_by` says why, and no further row begins.
    """

    def __init__(self, lives: Iterable[Life], tools: Tools, *, plan_only: bool, concurrency: int = 32) -> None:
        self.stopped_by: KeyRefused | None = None
        self._lives = {life.row.project_id: life for life in lives}
        self._tools = tools
        self._plan_only = plan_only
        self._slots = asyncio.Semaphore(concurrency)
        self._holder = f"{socket.gethostname()}:{os.getpid()}"

    @property
    def requests(self) -> Mapping[str, int]:
        return dict(self._tools.gateway.counts)

    async def plan(self, project_ids: Sequence[str]) -> list[RowResult]:
        """
        Read each project and compare; nothing is written.

        Returns the rows that ended and need attention. Raises Passing while some row may succeed on another try.
        """
        return await self._advance(
            [life for life in self._chosen(project_ids) if not life.plan_made], Life.plan, holding=False
        )

    async def apply(self, project_ids: Sequence[str]) -> list[RowResult]:
        """
        Send what was planned for each project and verify it.

        Returns the rows that ended and need attention. Raises Passing while some row may succeed on another try.
        """
        return await self._advance([life for life in self._chosen(project_ids) if life.plan_made], Life.apply)

    async def close(self, project_ids: Sequence[str]) -> list[RowResult]:
        """End the overlaps whose time is over. Returns the rows that ended and need attention."""
        return await self._advance(self._chosen(project_ids), Life.close)

    def to_apply(self) -> list[str]:
        """The projects whose plan holds something to send."""
        return [key for key, life in self._lives.items() if life.plan_made and not life.ended]

    def results(self) -> list[RowResult]:
        """How every row stands, in the manifest's order."""
        return [self._standing(life) for life in self._lives.values()]

    def to_run_again(self) -> list[Row]:
        """The rows that are not as wanted."""
        return [life.row for life in self._lives.values() if not self._standing(life).outcome.is_as_wanted]

    def steps_done(self) -> tuple[int, int]:
        """How many steps of how many are behind us: one a row to plan, one more to apply."""
        steps = 1 if self._plan_only else 2
        done = sum(steps if life.ended else 1 if life.plan_made else 0 for life in self._lives.values())
        return done, steps * len(self._lives)

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
            await self._release(self._lives.values())

    async def _renew_until(self, ending: asyncio.Event) -> None:
        while self._tools.store and not ending.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(ending.wait(), LEASE_SECONDS / 3)
            held = {key: life.lease for key, life in self._lives.items() if life.lease}
            with suppress(RowTrouble):
                # A lease that is missing in the answer is lost; the next transition of its row says so.
                for key, lease in (await self._tools.store.renew(held)).items():
                    if self._lives[key].lease:
                        self._lives[key].renew(lease)

    def _chosen(self, project_ids: Sequence[str]) -> list[Life]:
        return [self._lives[key] for key in project_ids]

    def _standing(self, life: Life) -> RowResult:
        return life.standing(plan_only=self._plan_only, stopped_by=self.stopped_by)

    async def _advance(
        self, lives: list[Life], step: Callable[[Life], Awaitable[None]], *, holding: bool = True
    ) -> list[RowResult]:
        if holding:
            await self._hold([life for life in lives if not life.ended and not life.lease])
        await asyncio.gather(*(self._work(life, step) for life in lives if not life.ended))
        await self._release([life for life in lives if life.ended])
        unsettled = [life.trouble for life in lives if life.trouble and not life.ended]
        if unsettled and not self.stopped_by:
            raise Passing(f"{len(unsettled)} of {len(lives)} not settled yet: {unsettled[0]}")
        results = [self._standing(life) for life in lives if life.ended or self.stopped_by]
        return [result for result in results if not result.outcome.is_as_wanted]

    async def _hold(self, lives: Sequence[Life]) -> None:
        """Take these records for this run, and read them again: another run may have been there since the plan."""
        if not self._tools.store or not lives or self.stopped_by:
            return
        by_id = {life.row.project_id: life for life in lives}
        try:
            leases = await self._tools.store.take(by_id, self._holder, self._tools.run_id, LEASE_SECONDS)
            unreadable: dict[str, Unreadable] = {}
            records = await self._tools.store.read(leases, unreadable)
        except RowTrouble as trouble:
            for life in lives:
                life.fail(trouble)
        else:
            for key, record in records.items():
                by_id[key].hold(leases[key], record)
            for key, spoiled in unreadable.items():
                by_id[key].fail(spoiled)

    async def _release(self, lives: Iterable[Life]) -> None:
        held = [life for life in lives if life.lease]
        if not self._tools.store or not held:
            return
        await asyncio.gather(*(life.note_failure() for life in held))
        with suppress(RowTrouble):
            await self._tools.store.release({life.row.project_id: life.lease for life in held if life.lease})
        for life in held:
            life.lease = None

    async def _work(self, life: Life, step: Callable[[Life], Awaitable[None]]) -> None:
        async with self._slots:
            if self.stopped_by:
                return
            if life.trouble:
                self._tools.gateway.counts["retries"] += 1
            try:
                await step(life)
                life.trouble = None
            except Passing as trouble:
                life.trouble = trouble
            except RowTrouble as trouble:
                life.fail(trouble)
                if isinstance(trouble, KeyRefused) and not life.row.api_key:
                    self.stopped_by = trouble


@asynccontextmanager
async def open_store(settings: StoreSettings, handlers: Mapping[str, Handler]) -> AsyncIterator[Store]:
    """The record store alone. Raises RefusedInput."""
    wanted = {ref: name for name, secret in settings.secrets().items() if (ref := as_reference(secret))}
    vault = await resolve(wanted, handlers)
    if settings.store_key is None:
        raise SettingsError([Fault("JELOU_STORE_KEY", "missing; it is what the record store is encrypted with")])
    url = _value(settings.store_url, vault).get_secret_value()
    async with Store.open(url, _value(settings.store_key, vault)) as store:
        yield store


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
) -> AsyncIterator[Rotation]:
    """
    A rotation that is ready to begin: every reference resolved, the store and the client open.

    `handlers` read the values behind references, by scheme; `publish` writes what `publishTo` names.
    Raises RefusedInput before anything is sent.
    """
    wanted = wanted_references(settings, rows)
    vault = await resolve(wanted, handlers)
    check_credentials(rows, vault)
    async with AsyncExitStack() as stack:
        store = await _open_store(stack, settings, vault, rows, plan_only=plan_only)
        gateway = await stack.enter_async_context(_gateway(settings, vault))
        prober = await stack.enter_async_context(Prober(allow_private_hosts=settings.allow_private_hosts))
        tools = Tools(gateway, vault, prober, publish or _nowhere, run_id, store, orders)
        unreadable: dict[str, Unreadable] = {}
        records = await store.read((row.project_id for row in rows), unreadable) if store else {}
        lives = [Life(row, tools, records.get(row.project_id)) for row in rows]
        for life in lives:
            if trouble := unreadable.get(life.row.project_id):
                life.fail(trouble)
        rotation = Rotation(lives, tools, plan_only=plan_only, concurrency=settings.concurrency)
        async with rotation.kept_leases():
            yield rotation


async def _open_store(
    stack: AsyncExitStack, settings: Settings, vault: Vault, rows: Iterable[Row], *, plan_only: bool
) -> Store | None:
    if settings.store_key is None:
        if any(row.needs_record for row in rows):
            message = "missing; generate, publishTo and overlap need a record: jelou-rotation store key makes one"
            raise SettingsError([Fault("JELOU_STORE_KEY", message)])
        return None
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
        pace=Pace(settings.requests_per_second),
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
