"""One lock for every run that writes, across deployments: a global concurrency limit on the Prefect server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from time import monotonic
from uuid import UUID

from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import GlobalConcurrencyLimitResponse
from prefect.concurrency.asyncio import (
    ConcurrencySlotAcquisitionError,
    concurrency,
)
from prefect.events.filters import EventFilter, EventNameFilter, EventResourceFilter
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.logging import get_run_logger

from jelou_rotation.errors import Busy, Fault, SettingsError

LOCK = "jelou-rotation"
WAIT_SECONDS = 5
# What a killed run goes on holding the lock for; Prefect takes no less. It renews after three quarters, so a server
# that restarts at the worst moment may give the lock away. The leases of the records keep the runs apart even then.
LEASE_SECONDS = 60
# Prefect frees what has run out a little later.
_SWEEP_SECONDS = 30
_PAUSE_SECONDS = 0.5
_LOCKED = 423
_MEND = f"prefect global-concurrency-limit update {LOCK} --limit 1 --enable --slot-decay-per-second 0"
_FREE = f"prefect global-concurrency-limit update {LOCK} --active-slots 0"


@asynccontextmanager
async def one_run_at_a_time(needed: bool = True) -> AsyncIterator[None]:
    """
    Hold the lock until the end of the block, where it is needed.

    Raises Busy when another run holds it for longer than five seconds, and SettingsError when somebody changed the
    lock so that it keeps nobody out. A run that has it goes on when the Prefect server is away for a while.
    """
    async with AsyncExitStack() as held:
        if needed:
            async with get_client() as client:
                await ensure_lock(client)
                _refuse_changed(await client.read_global_concurrency_limit_by_name(LOCK))
            await _take(held)
        yield


async def ensure_lock(client: PrefectClient) -> bool:
    """Whether the lock had to be made."""
    try:
        await client.read_global_concurrency_limit_by_name(LOCK)
    except ObjectNotFound:
        try:
            await client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=LOCK, limit=1))
        except ObjectAlreadyExists:
            return False  # another run made it meanwhile
        return True
    return False


def keeps_others_out(lock: GlobalConcurrencyLimitResponse) -> bool:
    """Not when it is switched off, lets two in, or frees itself with time."""
    return lock.active and lock.limit == 1 and lock.slot_decay_per_second == 0


def _refuse_changed(lock: GlobalConcurrencyLimitResponse) -> None:
    if not keeps_others_out(lock):
        raise SettingsError([Fault(f"the lock {LOCK}", f"somebody changed it and it keeps nobody out; run: {_MEND}")])


async def _take(held: AsyncExitStack) -> None:
    """
    Ask again and again: Prefect itself would wait, after one refusal, as long as the lock is usually held.

    The time counts only from refusal to refusal: a server that is slow to answer has not refused anything (measured:
    ten seconds and more on SQLite, right after 200 task runs). A run that was killed is waited for: its lease runs out.
    """
    began, patience = monotonic(), WAIT_SECONDS
    while not await _taken(held):
        if monotonic() - began > patience:
            holder = await _holder()
            if patience > WAIT_SECONDS or not holder or not holder.state or not holder.state.is_final():
                raise Busy(_busy(holder))
            get_run_logger().warning("The run %r died with the lock; it comes free within a minute", holder.name)
            patience = LEASE_SECONDS + _SWEEP_SECONDS
        await asyncio.sleep(_PAUSE_SECONDS)


async def _taken(held: AsyncExitStack) -> bool:
    lock = concurrency(
        LOCK,
        max_retries=0,
        lease_duration=LEASE_SECONDS,
        strict=True,
        # A server that cannot be asked for a while must not end a rotation halfway. What keeps two writers off one
        # project even then is the lease in its record.
        raise_on_lease_renewal_failure=False,
    )
    try:
        await held.enter_async_context(lock)
    except ConcurrencySlotAcquisitionError as error:
        answer = getattr(error.__cause__, "response", None)
        if answer is not None and answer.status_code == _LOCKED:
            return False
        raise SettingsError([Fault(f"the lock {LOCK}", "the Prefect server did not give it")]) from None
    return True


def _busy(holder: FlowRun | None) -> str:
    name = f"The run {holder.name!r} ({holder.state_name})" if holder else "Another run"
    return (
        f"{name} is at work, and only one run may write at a time. Wait for it, then start this one again. A run that"
        f" was killed frees the lock within two minutes; should it stay taken while no run is at work: {_FREE}"
    )


async def _holder() -> FlowRun | None:
    """The run that took the lock last; the server tells it in its events only, and those come late."""
    async with get_client() as client:
        lock = await client.read_global_concurrency_limit_by_name(LOCK)
        last_taken = EventFilter(
            event=EventNameFilter(prefix=["prefect.concurrency-limit."]),
            resource=EventResourceFilter(id=[f"prefect.concurrency-limit.{lock.id}"]),
        )
        for event in (await client.read_events(last_taken, limit=1)).events:
            run = event.resource_in_role.get("flow-run")
            if run and event.event.endswith(".acquired"):
                this_one = FlowRunFilterId(any_=[UUID(run.id.removeprefix("prefect.flow-run."))])
                found = await client.read_flow_runs(flow_run_filter=FlowRunFilter(id=this_one))
                return found[0] if found else None
    return None
