"""One lock for every run that writes; on a real Prefect server."""

import asyncio

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate
from prefect.exceptions import ObjectNotFound

from jelou_rotation.errors import Busy, SettingsError
from tasks import lock
from tasks.lock import LOCK, one_run_at_a_time


@pytest.fixture
async def client(prefect_server):
    async with get_client() as client:
        await forget_the_lock(client)
        yield client
        await forget_the_lock(client)


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(lock, "WAIT_SECONDS", 0.5)


async def forget_the_lock(client):
    try:
        await client.delete_global_concurrency_limit_by_name(LOCK)
    except ObjectNotFound:
        return


async def taken(client):
    return (await client.read_global_concurrency_limit_by_name(LOCK)).active_slots


async def change(client, **fields):
    await client.update_global_concurrency_limit(LOCK, GlobalConcurrencyLimitUpdate(**fields))


async def test_the_first_run_makes_the_lock_and_gives_it_back(client):
    async with one_run_at_a_time():
        assert await taken(client) == 1

    assert await taken(client) == 0


async def test_it_is_given_back_by_a_run_that_breaks(client):
    with pytest.raises(ZeroDivisionError):
        async with one_run_at_a_time():
            raise ZeroDivisionError

    assert await taken(client) == 0


async def test_runs_that_begin_at_once_on_a_new_server_make_one_lock_and_take_it_in_turn(client):
    inside, most = 0, 0

    async def run():
        nonlocal inside, most
        async with one_run_at_a_time():
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1

    await asyncio.gather(run(), run())

    assert most == 1


async def test_a_second_run_is_refused_and_told_what_to_do(client, impatient):
    async with one_run_at_a_time():
        with pytest.raises(Busy, match="at work, and only one run may write") as refusal:
            async with one_run_at_a_time():
                pytest.fail("two are in")

    assert f"prefect global-concurrency-limit update {LOCK} --active-slots 0" in str(refusal.value)


@pytest.mark.parametrize(
    "change_it", [{"active": False}, {"limit": 2}, {"limit": 0}, {"slot_decay_per_second": 0.1}], ids=str
)
async def test_a_lock_that_keeps_nobody_out_is_refused_in_words(client, change_it):
    async with one_run_at_a_time():
        pass
    await change(client, **change_it)

    with pytest.raises(SettingsError, match="it keeps nobody out; run: prefect global-concurrency-limit update"):
        async with one_run_at_a_time():
            pytest.fail("let in by a lock that is none")


async def test_a_lease_that_cannot_be_renewed_does_not_end_the_run(client, monkeypatch):
    renewed = asyncio.Event()
    loop = asyncio.get_running_loop()

    def gone(*_arguments):
        loop.call_soon_threadsafe(renewed.set)
        raise ConnectionError("the server restarts")

    monkeypatch.setattr("prefect.concurrency._leases._renew_concurrency_lease_with_retries", gone)
    async with one_run_at_a_time():
        await asyncio.wait_for(renewed.wait(), 5)
        await asyncio.sleep(0.2)  # in which Prefect would cancel the run
