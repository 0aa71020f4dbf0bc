import asyncio
import base64
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import traceback
from collections import Counter
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from pydantic import SecretStr
from sqlalchemy import select, text, update

from jelou_rotation.errors import IllegalTransition, LeaseLost, Reused, StoreError, StoreUnavailable, Unreadable
from jelou_rotation.gateway import Integration
from jelou_rotation.records import Cipher, Step, database, new_key, schema, writer
from jelou_rotation.records.store import Store
from jelou_rotation.row import AuthType

BEARER = AuthType.BEARER
SEEN = Integration("https://panel.example/hook?token=canary-in-the-address", "bearer", datetime(2026, 1, 1, tzinfo=UTC))
LATER = datetime(2026, 5, 2, tzinfo=UTC)


class Clock:
    def __init__(self):
        self.moment = datetime(2026, 5, 1, tzinfo=UTC)

    def __call__(self):
        return self.moment

    def forward(self, seconds):
        self.moment += timedelta(seconds=seconds)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def key():
    return SecretStr(new_key())


@pytest.fixture
async def store(store_url, key, clock):
    async with Store.open(store_url, key, now=clock) as store:
        yield store


@pytest.fixture
async def two_stores(store_url, key, clock):
    async with Store.open(store_url, key, now=clock) as one, Store.open(store_url, key, now=clock) as other:
        yield one, other


async def take(store, *project_ids, holder="worker-1", run_id="run-1"):
    leases = await store.take(project_ids, holder, run_id, 60)
    return leases[project_ids[0]] if len(project_ids) == 1 else leases


async def record(store, project_id="prj"):
    return (await store.read([project_id]))[project_id]


async def names(store, project_id="prj"):
    return [line.name for line in await store.history(project_id)]


async def raw(store):
    """Everything the database holds, row by row."""
    async with store._engine.connect() as connection:
        tables = schema.metadata.sorted_tables
        return {table.name: (await connection.execute(select(table))).fetchall() for table in tables}


async def set_raw(store, project_id, **columns):
    async with store._engine.begin() as connection:
        await connection.execute(
            update(schema.records).where(schema.records.c.project_id == project_id).values(columns)
        )


async def value_of(store, project_id, column):
    async with store._engine.connect() as connection:
        query = select(schema.records.c[column]).where(schema.records.c.project_id == project_id)
        return (await connection.execute(query)).scalar_one()


TRANSITIONS = {
    "stage": lambda store, lease: store.stage(lease, SecretStr(f"canary-{lease.project_id}-last"), BEARER),
    "mark_sent": lambda store, lease: store.mark_sent(lease),
    "promote": lambda store, lease: store.promote(lease, SEEN, LATER),
    "begin_rollback": lambda store, lease: store.begin_rollback(lease),
    "finish_rollback": lambda store, lease: store.finish_rollback(lease, SEEN),
    "discard": lambda store, lease: store.discard(lease),
    "retire": lambda store, lease: store.retire(lease),
    "observe": lambda store, lease: store.observe(lease, Integration("https://observed.example")),
    "note_failure": lambda store, lease: store.note_failure(lease, 3),
}

ONCE = ("stage", "mark_sent", "promote")
WAYS = {
    "new": (),
    "current": ONCE,
    "overlap": (*ONCE, *ONCE),
    "staged": (*ONCE, "stage"),
    "first_sent": ("stage", "mark_sent"),
    "sent": (*ONCE, "stage", "mark_sent"),
    "rolling_back": (*ONCE, "stage", "mark_sent", "begin_rollback"),
}
STEPS = {
    "new": Step.IDLE,
    "current": Step.IDLE,
    "overlap": Step.IDLE,
    "staged": Step.STAGED,
    "first_sent": Step.SENT,
    "sent": Step.SENT,
    "rolling_back": Step.ROLLING_BACK,
}
# Where each transition leads from each state; the states that are not named refuse it.
ALLOWED = {
    "stage": {
        "new": Step.STAGED,
        "current": Step.STAGED,
        "overlap": Step.STAGED,
        "staged": Step.STAGED,
        "first_sent": Step.SENT,
        "sent": Step.SENT,
    },
    "mark_sent": {"staged": Step.SENT, "first_sent": Step.SENT, "sent": Step.SENT},
    "promote": {"first_sent": Step.IDLE, "sent": Step.IDLE},
    "begin_rollback": {"sent": Step.ROLLING_BACK},
    "finish_rollback": {"rolling_back": Step.IDLE},
    "discard": {"staged": Step.IDLE},
    "retire": {"overlap": Step.IDLE},
    "observe": STEPS,
    "note_failure": STEPS,
}


async def bring(store, state):
    """A project that is in this state, by its lease."""
    lease = await take(store, state)
    for number, name in enumerate(WAYS[state]):
        if name == "stage":
            await store.stage(lease, SecretStr(f"canary-{state}-{number}"), BEARER)
        else:
            await TRANSITIONS[name](store, lease)
    return lease


@pytest.mark.parametrize("transition", TRANSITIONS)
async def test_a_transition_leads_where_it_may_and_is_refused_elsewhere(store, transition):
    for state in WAYS:
        lease = await bring(store, state)
        before, lines = await record(store, state), await store.history(state)
        if state in ALLOWED[transition]:
            after = await TRANSITIONS[transition](store, lease)
            assert (state, after.step) == (state, ALLOWED[transition][state])
            assert after == await record(store, state)
        else:
            with pytest.raises(IllegalTransition, match=f"^{state}: "):
                await TRANSITIONS[transition](store, lease)
            assert await record(store, state) == before
            assert await store.history(state) == lines


@pytest.mark.parametrize("lost", ["ran out", "taken over", "given back"])
async def test_without_its_lease_no_transition_is_possible_and_the_row_stays_as_it_was(store, clock, lost):
    leases = {state: await bring(store, state) for state in WAYS}
    if lost == "given back":
        await store.release(leases)
    else:
        clock.forward(60)
    if lost == "taken over":
        await take(store, *WAYS, holder="worker-2", run_id="run-2")
    before = await raw(store)

    for transition, allowed in ALLOWED.items():
        for state in allowed:
            with pytest.raises(LeaseLost, match=f"^{state}: "):
                await TRANSITIONS[transition](store, leases[state])
    assert await raw(store) == before


async def test_a_rotation_moves_the_values_from_pending_to_current_to_previous(store, clock):
    lease = await take(store, "prj")
    for value in ("canary-1", "canary-2"):
        await store.stage(lease, SecretStr(value), BEARER)
        await store.mark_sent(lease)
        await store.promote(lease, SEEN, LATER)
        clock.forward(1)
    await store.stage(lease, SecretStr("canary-3"), AuthType.BASIC)
    told = await record(store)

    shown = [each.value.get_secret_value() for each in (told.previous, told.current, told.pending)]
    assert shown == ["canary-1", "canary-2", "canary-3"]
    assert (told.current.auth_type, told.pending.auth_type) == (BEARER, AuthType.BASIC)
    assert (told.current.made_at, told.pending.made_at) == (clock() - timedelta(seconds=1), clock())
    assert (told.overlap_until, told.integration) == (LATER, SEEN)
    assert "canary" not in repr(told).replace("canary-in-the-address", "")


async def test_the_first_credential_leaves_nothing_to_overlap(store):
    await bring(store, "current")
    told = await record(store, "current")

    assert (told.previous, told.overlap_until) == (None, None)


@pytest.mark.parametrize("state", ["staged", "sent"])
async def test_a_retry_never_makes_a_second_value(store, state):
    lease = await bring(store, state)
    await bring(store, "current")
    before, lines = await record(store, state), await store.history(state)

    for unused in ("canary-another", "canary-current-0"):
        assert await store.stage(lease, SecretStr(unused), AuthType.BASIC) == before
    assert await store.history(state) == lines


async def test_callers_that_stage_one_project_at_once_get_the_same_value(store):
    lease = await take(store, "prj")
    told = await asyncio.gather(*(store.stage(lease, SecretStr(f"canary-{n}"), BEARER) for n in range(20)))

    assert len({each.pending.value.get_secret_value() for each in told}) == 1
    assert await names(store) == ["stage"]


async def test_a_rollback_drops_the_pending_value_and_keeps_the_current_one(store):
    lease = await bring(store, "rolling_back")
    current = (await record(store, "rolling_back")).current
    told = await store.finish_rollback(lease, Integration("https://back.example"))

    assert (told.current, told.pending, told.previous) == (current, None, None)
    assert told.integration == Integration("https://back.example")


async def test_retiring_drops_the_previous_value(store):
    told = await store.retire(await bring(store, "overlap"))

    assert (told.previous, told.overlap_until) == (None, None)
    assert told.current


async def test_what_the_receiver_accepted_before_the_first_patch_is_kept(store):
    lease = await bring(store, "staged")
    await store.mark_sent(lease, accepted_before=True)

    assert (await store.mark_sent(lease, accepted_before=False)).accepted_before is True
    assert (await store.promote(lease, SEEN, None)).accepted_before is True
    assert (await store.stage(lease, SecretStr("canary-next"), BEARER)).accepted_before is None


async def test_failures_in_a_row_park_a_project_until_a_person_unparks_it(store):
    lease = await take(store, "prj")
    counted = [await store.note_failure(lease, 2) for _ in range(2)]
    assert [(each.failures, each.parked) for each in counted] == [(1, False), (2, True)]

    await store.unpark("prj", "ana")
    await store.unpark("prj", "ana")
    told = await record(store)
    assert (told.failures, told.parked) == (0, False)
    assert await names(store) == ["note_failure", "note_failure", "unpark"]
    assert (await store.history("prj"))[-1].holder == "ana"


async def test_a_success_ends_the_count_of_failures(store):
    lease = await bring(store, "sent")
    await store.note_failure(lease, 5)

    assert (await store.promote(lease, SEEN, None)).failures == 0


async def test_observing_what_is_known_already_writes_nothing(store):
    lease = await take(store, "prj")
    await store.observe(lease, SEEN)
    await store.observe(lease, SEEN)
    await store.observe(lease, Integration())

    assert await names(store) == ["observe", "observe"]
    assert (await record(store)).integration == Integration()


async def test_the_history_tells_when_who_and_under_which_fence(store, clock):
    await bring(store, "current")
    clock.forward(60)
    await store.note_failure(await take(store, "current", holder="worker-2", run_id="run-2"), 3)

    lines = await store.history("current")
    assert [line.name for line in lines] == ["stage", "mark_sent", "promote", "note_failure"]
    assert [(line.run_id, line.holder, line.fence) for line in lines[2:]] == [
        ("run-1", "worker-1", 1),
        ("run-2", "worker-2", 2),
    ]
    assert lines[3].at == clock() == lines[2].at + timedelta(seconds=60)


async def test_all_ids_and_open_overlaps_find_what_there_is_to_do(store):
    for number, due in enumerate([LATER + timedelta(days=1), LATER]):
        lease = await take(store, f"prj_{number}")
        for value in (f"canary-{number}-1", f"canary-{number}-2"):
            await store.stage(lease, SecretStr(value), BEARER)
            await store.mark_sent(lease)
            await store.promote(lease, SEEN, due)
    await bring(store, "current")

    assert await store.all_ids() == ["current", "prj_0", "prj_1"]
    assert [each.project_id for each in await store.open_overlaps()] == ["prj_1", "prj_0"]


async def test_reading_takes_any_number_of_projects_and_leaves_out_the_unknown(store):
    ids = [f"prj_{number}" for number in range(1200)]
    await store.take(ids, "worker-1", "run-1", 60)

    assert set(await store.read([*ids, "unknown"])) == set(ids)
    assert await store.read([]) == {}


# Leases


async def test_a_lease_keeps_others_out_and_tells_who_has_it(store, clock):
    await take(store, "prj")

    assert set(await store.take(["prj", "other"], "worker-2", "run-2", 60)) == {"other"}
    told = await record(store)
    assert (told.holder, told.run_id, told.held_until) == ("worker-1", "run-1", clock() + timedelta(seconds=60))


@pytest.mark.parametrize("way", ["ran out", "given back", "taken again by the same run"])
async def test_a_free_lease_is_taken_with_a_higher_fence(store, clock, way):
    first = await take(store, "prj")
    if way == "ran out":
        clock.forward(60)
    if way == "given back":
        await store.release({"prj": first})
    worker = "worker-1" if way == "taken again by the same run" else "worker-2"
    second = await take(store, "prj", holder=worker)

    assert (first.fence, second.fence) == (1, 2)


async def test_a_renewed_lease_lasts_as_long_again_and_a_lost_one_is_not_renewed(store, clock):
    leases = await take(store, "kept", "lost")
    clock.forward(59)
    await store.release({"lost": leases["lost"]})
    renewed = await store.renew(leases)
    clock.forward(59)

    assert set(renewed) == {"kept"}
    assert renewed["kept"].until == clock() + timedelta(seconds=1)
    await store.note_failure(leases["kept"], 3)


@pytest.mark.parametrize("change", ["renew", "release"])
async def test_a_replaced_run_cannot_touch_the_lease_of_its_successor(store, clock, change):
    old = await take(store, "prj")
    clock.forward(60)
    await take(store, "prj", holder="worker-2")
    before = await raw(store)
    await getattr(store, change)({"prj": old})

    assert await raw(store) == before


@pytest.mark.parametrize("projects", ["new", "known"])
async def test_two_stores_that_race_for_leases_never_get_the_same_one(two_stores, clock, projects):
    ids = [f"prj_{number}" for number in range(30)]
    if projects == "known":
        await take(two_stores[0], *ids)
        clock.forward(60)
    answers = await asyncio.gather(
        *(each.take([key], f"worker-{n}", "run", 60) for key in ids for n, each in enumerate(two_stores))
    )

    assert Counter(key for answer in answers for key in answer) == Counter(ids)


async def test_without_an_injected_clock_leases_go_by_the_servers_and_for_a_file_by_this_machines(
    store_url, key, monkeypatch
):
    class Stopped(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime(2000, 1, 1, tzinfo=tz)

    monkeypatch.setattr(writer, "datetime", Stopped)
    async with Store.open(store_url, key) as store:
        lease = await take(store, "prj")
        await store.note_failure(lease, 3)

    assert (lease.until.year == 2000) is store_url.startswith("sqlite")


# Values that belong to one project


async def test_a_value_of_another_project_is_refused_and_the_row_stays_as_it_was(store):
    leases = await take(store, "one", "other")
    await store.stage(leases["one"], SecretStr("canary-shared"), BEARER)
    before = await raw(store)

    with pytest.raises(Reused, match=r"^other: .* one") as caught:
        await store.stage(leases["other"], SecretStr("canary-shared"), BEARER)
    assert "canary" not in str(caught.value)
    assert await raw(store) == before


async def test_projects_that_stage_one_value_in_the_same_moment_do_not_share_it(store):
    leases = await take(store, "one", "other")
    answers = await asyncio.gather(
        *(store.stage(lease, SecretStr("canary-shared"), BEARER) for lease in leases.values()), return_exceptions=True
    )

    assert [isinstance(answer, Reused) for answer in answers] == [False, True]


# SQLite has one writer at a time.
@pytest.mark.parametrize("store_url", ["postgresql"], indirect=True)
async def test_a_value_that_another_process_stored_after_we_looked_is_not_taken_from_it(two_stores, monkeypatch):
    one, other = two_stores
    theirs, mine = await take(one, "theirs"), await take(other, "mine", holder="worker-2")
    look = writer.owners

    async def look_too_early(connection, marks):
        monkeypatch.setattr(writer, "owners", look)
        seen = await look(connection, marks)
        await one.stage(theirs, SecretStr("canary-shared"), BEARER)
        return seen

    monkeypatch.setattr(writer, "owners", look_too_early)

    with pytest.raises(Reused, match=r"^mine: .* theirs"):
        await other.stage(mine, SecretStr("canary-shared"), BEARER)


async def test_stores_that_race_with_one_value_let_one_project_have_it(two_stores):
    one, other = two_stores
    mine, theirs = await take(one, *"abcdefghij"), await take(other, *"klmnopqrst", holder="worker-2")
    pairs = zip(mine.values(), theirs.values(), strict=True)
    answers = await asyncio.gather(
        *(
            each.stage(lease, SecretStr(f"canary-{number}"), BEARER)
            for number, pair in enumerate(pairs)
            for each, lease in zip(two_stores, pair, strict=True)
        ),
        return_exceptions=True,
    )

    refused = [isinstance(answer, Reused) for answer in answers]
    assert [sorted(pair) for pair in zip(refused[::2], refused[1::2], strict=True)] == [[False, True]] * 10


async def test_the_last_ten_values_of_a_project_are_remembered(store):
    lease = await take(store, "prj")
    for number in range(11):
        await store.stage(lease, SecretStr(f"canary-{number}"), BEARER)
        await store.discard(lease)
    leases = await take(store, "second", "third")

    await store.stage(leases["second"], SecretStr("canary-0"), BEARER)
    with pytest.raises(Reused):
        await store.stage(leases["third"], SecretStr("canary-1"), BEARER)


async def test_none_of_the_last_ten_values_of_a_project_comes_again(store):
    lease = await take(store, "prj")
    for number in range(11):
        await store.stage(lease, SecretStr(f"canary-{number}"), BEARER)
        await store.discard(lease)

    with pytest.raises(Reused, match="belongs, or belonged, to the project prj"):
        await store.stage(lease, SecretStr("canary-1"), BEARER)
    await store.stage(lease, SecretStr("canary-0"), BEARER)


async def test_a_value_that_is_not_made_here_may_be_shared_and_come_again(store):
    leases = await take(store, "one", "other")
    for lease in [*leases.values(), *leases.values()]:
        await store.stage(lease, SecretStr("canary-shared"), BEARER, exclusive=False)
        await store.discard(lease)


# Many at once


async def test_a_refused_transition_does_not_hurt_those_it_shares_a_commit_with(store):
    leases = await take(store, "one", "two", "three")
    await store.release({"two": leases["two"]})
    answers = await asyncio.gather(
        *(store.stage(leases[key], SecretStr(f"canary-{key}"), BEARER) for key in ("one", "two", "three")),
        store.mark_sent(leases["one"]),
        return_exceptions=True,
    )

    assert [getattr(each, "step", type(each)) for each in answers] == [Step.STAGED, LeaseLost, Step.STAGED, Step.SENT]
    assert [(await record(store, key)).step for key in ("one", "two", "three")] == [Step.SENT, Step.IDLE, Step.STAGED]


async def test_a_caller_that_is_cancelled_takes_nobody_with_it(store):
    leases = await take(store, *(f"prj_{number}" for number in range(20)))
    tasks = [
        asyncio.create_task(store.stage(lease, SecretStr(f"canary-{key}"), BEARER)) for key, lease in leases.items()
    ]
    for _ in range(3):
        await asyncio.sleep(0)
    tasks[0].cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)

    assert isinstance(answers[0], asyncio.CancelledError)
    assert {each.step for each in answers[1:]} == {Step.STAGED}
    assert (await store.note_failure(leases["prj_0"], 3)).failures == 1


async def test_a_transition_whose_caller_is_gone_is_finished_before_the_store_closes(store_url, key):
    async with Store.open(store_url, key) as store:
        task = asyncio.create_task(store.stage(await take(store, "prj"), SecretStr("canary"), BEARER))
        await asyncio.sleep(0)
        task.cancel()

    async with Store.open(store_url, key) as store:
        assert (await record(store)).step is Step.STAGED


async def test_a_store_that_fails_in_the_middle_says_so_to_each_caller_without_the_drivers_words(store):
    leases = await take(store, "one", "other")
    async with store._engine.begin() as connection:
        await connection.execute(text("DROP TABLE jelou_history"))
    answers = await asyncio.gather(
        *(store.stage(lease, SecretStr(f"canary-{key}"), BEARER) for key, lease in leases.items()),
        return_exceptions=True,
    )

    assert [type(each) for each in answers] == [StoreUnavailable] * 2
    assert "jelou_history" not in "".join(traceback.format_exception(answers[0]))
    assert {each.step for each in (await store.read(leases)).values()} == {Step.IDLE}


# Opening


async def test_opening_again_changes_nothing_and_the_migrations_make_what_the_schema_says(store_url, key):
    async with Store.open(store_url, key) as store:
        await bring(store, "overlap")
        before = await raw(store)
    async with Store.open(store_url, key) as store:
        assert await raw(store) == before
        async with store._engine.connect() as connection:
            found = await connection.run_sync(differences)

    assert found == []


def differences(connection):
    options = {"version_table": "jelou_schema", "compare_type": True}
    return compare_metadata(MigrationContext.configure(connection, opts=options), schema.metadata)


async def test_several_new_stores_can_be_opened_at_once_in_one_process(tmp_path, key):
    async with AsyncExitStack() as stack:
        opened = [Store.open(f"sqlite:///{tmp_path}/{number}.db", key) for number in range(6)]
        stores = await asyncio.gather(*(stack.enter_async_context(each) for each in opened))
        assert [await store.all_ids() for store in stores] == [[]] * 6


async def test_a_database_with_another_programs_migrations_can_be_shared(store_url, key):
    async with Store.open(store_url, key) as store, store._engine.begin() as connection:
        await connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32))"))
        await connection.execute(text("INSERT INTO alembic_version VALUES ('theirs')"))

    async with Store.open(store_url, key) as store:
        assert await store.all_ids() == []


async def test_a_store_of_a_newer_version_is_refused(store_url, key):
    async with Store.open(store_url, key) as store, store._engine.begin() as connection:
        await connection.execute(text("UPDATE jelou_schema SET version_num = '9999'"))

    with pytest.raises(StoreError, match="newer version"):
        async with Store.open(store_url, key):
            pass


RACER = """
import asyncio, os, sys
from pydantic import SecretStr
from jelou_rotation.records.store import Store

async def main(url, key, holder):
    print("ready", flush=True)
    sys.stdin.readline()
    async with Store.open(url, SecretStr(key)) as store:
        print(*await store.take([f"prj_{n}" for n in range(40)], holder, "run", 60), flush=True)

asyncio.run(main(os.environ["URL"], os.environ["KEY"], sys.argv[1]))
"""


def start(script, url, key, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        env={**os.environ, "URL": url, "KEY": key.get_secret_value()},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_processes_that_open_a_fresh_store_at_once_all_succeed_and_share_the_leases(store_url, key):
    racers = [start(RACER, store_url, key, f"worker-{number}") for number in range(2)]
    for racer in racers:
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    taken = [key for racer in racers for key in racer.communicate(timeout=20)[0].split()]

    assert [racer.returncode for racer in racers] == [0, 0]
    assert Counter(taken) == Counter(f"prj_{number}" for number in range(40))


WRITER = """
import asyncio, os
from pydantic import SecretStr
from jelou_rotation.row import AuthType
from jelou_rotation.records.store import Store

async def main(url, key):
    async with Store.open(url, SecretStr(key)) as store:
        leases = await store.take([f"prj_{n}" for n in range(2000)], "worker", "run", 3600)
        slots = asyncio.Semaphore(32)

        async def rotate(lease):
            async with slots:
                await store.stage(lease, SecretStr(f"canary-{lease.project_id}"), AuthType.BEARER)
                print(lease.project_id, "staged", flush=True)
                await store.mark_sent(lease)
                print(lease.project_id, "sent", flush=True)

        await asyncio.gather(*(rotate(lease) for lease in leases.values()))

asyncio.run(main(os.environ["URL"], os.environ["KEY"]))
"""


async def test_what_a_caller_was_told_is_durable_when_the_process_is_killed(store_url, key):
    worker = start(WRITER, store_url, key)
    told = [worker.stdout.readline().split() for _ in range(150)]
    worker.kill()
    with worker.stdout, worker.stdin:
        told += [line.split() for line in worker.stdout if line.endswith("\n")]
    worker.wait()

    assert worker.returncode == -signal.SIGKILL
    async with Store.open(store_url, key) as store:
        found = await store.read(await store.all_ids())
        sample = [key for key, each in found.items() if each.pending][::20]
        lines = {key: await names(store, key) for key in sample}
    assert 0 < len([each for each in found.values() if each.pending]) < 2000
    for project_id, step in told:
        assert found[project_id].pending.value.get_secret_value() == f"canary-{project_id}"
        assert found[project_id].step == Step.SENT or step == "staged"
    for project_id, done in lines.items():
        assert done == ["stage", "mark_sent"][: 1 + (found[project_id].step is Step.SENT)]


@pytest.mark.parametrize(
    ("url", "understood"),
    [
        ("sqlite:///a.db", "sqlite+aiosqlite:///a.db"),
        ("sqlite+aiosqlite:////a.db", "sqlite+aiosqlite:////a.db"),
        ("postgres://me@host/db", "postgresql+asyncpg://me@host/db"),
        ("postgresql://me@host/db?sslmode=require", "postgresql+asyncpg://me@host/db?ssl=require"),
        ("postgresql+asyncpg://me@/db?host=%2Frun", "postgresql+asyncpg://me@/db?host=%2Frun"),
    ],
)
def test_addresses_are_understood_as_they_are_usually_written(url, understood):
    assert database.parse_url(url).render_as_string() == understood


@pytest.mark.parametrize(
    ("url", "words"),
    [
        pytest.param("nonsense", "expected sqlite:///PATH", id="no address"),
        pytest.param("mysql://me:canary@host/db", "expected sqlite:///PATH", id="another database"),
        pytest.param("postgresql://me:canary@host:canary/db", "expected sqlite:///PATH", id="port"),
        pytest.param("sqlite://", "in memory", id="memory"),
        pytest.param("sqlite:///:memory:", "in memory", id="memory by name"),
        pytest.param("sqlite:///absent/records.db", "there is no such folder", id="no folder"),
        pytest.param("sqlite:///.", "Is a directory", id="a folder"),
        pytest.param("sqlite:///text.txt", "no SQLite database", id="another file"),
        pytest.param("postgresql://me:a@canary@127.0.0.1:1/db", "with %40 for @", id="a password with an at sign"),
        pytest.param("postgresql://me:a@x/canary@127.0.0.1:1/db", "with %40 for @", id="a password with both"),
        pytest.param("postgresql://me:canary@127.0.0.1:1/db", "db on 127.0.0.1", id="nobody listens"),
        pytest.param("postgresql://me:canary@127.0.0.1:1/db?canary=canary", "db on 127.0.0.1", id="unknown option"),
    ],
)
async def test_a_store_that_cannot_be_opened_is_refused_in_words_without_the_password(tmp_path, key, url, words):
    (tmp_path / "text.txt").write_text("canary " * 1000)
    with pytest.raises(StoreError, match=words) as caught:
        async with Store.open(url, key):
            pass

    assert "canary" not in "".join(traceback.format_exception(caught.value)[-2:])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(("canary-database-password", "canary-wrong"), "refuses the user or the password", id="password"),
        pytest.param(("/postgres", "/absent"), "no such database", id="database"),
    ],
)
@pytest.mark.parametrize("store_url", ["postgresql"], indirect=True)
async def test_a_server_that_refuses_is_told_in_words(store_url, key, change, words):
    # From the right: the user's name is that of the database.
    changed = change[1].join(store_url.rsplit(change[0], 1))
    with pytest.raises(StoreError, match=words) as caught:
        async with Store.open(changed, key):
            pass

    assert "canary" not in "".join(traceback.format_exception(caught.value)[-2:])


@pytest.mark.parametrize("store_url", ["postgresql"], indirect=True)
async def test_a_server_that_accepts_no_writes_is_refused(store_url, key):
    async with Store.open(store_url, key) as store, store._engine.begin() as connection:
        await connection.execute(text("CREATE ROLE reader SUPERUSER LOGIN PASSWORD 'canary'"))
        await connection.execute(text("ALTER ROLE reader SET default_transaction_read_only = on"))

    with pytest.raises(StoreError, match="accepts no writes"):
        async with Store.open(store_url.replace("postgres:canary-database-password", "reader:canary"), key):
            pass


@pytest.fixture
def open_folder():
    """A folder that a user without rights can reach, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def without_rights():
    """For root no file is read-only."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    yield
    if is_root:
        os.seteuid(0)


@pytest.mark.parametrize("read_only", ["file", "folder"])
async def test_a_file_that_cannot_be_written_is_refused(open_folder, key, request, read_only):
    path = open_folder / "records.db"
    async with Store.open(f"sqlite:///{path}", key):
        pass
    path.chmod(0o444 if read_only == "file" else 0o666)
    open_folder.chmod(0o777 if read_only == "file" else 0o555)
    request.getfixturevalue("without_rights")

    with pytest.raises(StoreError, match=r"records\.db cannot be used: (it cannot be written|the file or its folder)"):
        async with Store.open(f"sqlite:///{path}", key):
            pass


async def test_only_its_owner_can_read_the_file_and_a_commit_waits_for_the_disk(tmp_path, key):
    async with Store.open(f"sqlite:///{tmp_path}/records.db", key) as store, store._engine.connect() as connection:
        found = [
            (await connection.execute(text(f"PRAGMA {name}"))).scalar() for name in ("journal_mode", "synchronous")
        ]
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.glob("records.db*")}

    assert found == ["wal", 2]
    assert modes == dict.fromkeys(["records.db", "records.db-wal", "records.db-shm"], 0o600)


# Sealed


async def test_a_wrong_key_is_refused_by_name_and_changes_nothing(store_url, key):
    async with Store.open(store_url, key) as store:
        await bring(store, "current")
        before = await raw(store)
    wrong = new_key()
    with pytest.raises(StoreError, match=r"^JELOU_STORE_KEY") as caught:
        async with Store.open(store_url, SecretStr(wrong)):
            pass

    assert wrong not in str(caught.value)
    async with Store.open(store_url, key) as store:
        assert await raw(store) == before


@pytest.mark.parametrize(
    "keys",
    ["", " , ", "canary", f"{new_key()},canary", f"{new_key()}canary", "cañary"],
    ids=["nothing", "blanks", "word", "key and word", "key with a tail", "not ASCII"],
)
def test_what_is_no_key_is_refused_without_repeating_it(keys):
    with pytest.raises(StoreError, match=r"^JELOU_STORE_KEY: expected") as caught:
        Cipher(SecretStr(keys))

    assert not [part for part in keys.split(",") if part.strip() and part in str(caught.value)]


@pytest.mark.parametrize("separator", [",", " ", "\n", ", "])
def test_the_first_key_seals_and_every_key_opens(separator):
    first, second = new_key(), new_key()
    both = Cipher(SecretStr(separator.join([first, second])))

    assert both.unseal("prj", Cipher(SecretStr(second)).seal("prj", "canary")) == "canary"
    assert Cipher(SecretStr(first)).unseal("prj", both.seal("prj", "canary")) == "canary"


async def test_a_sealed_value_that_was_moved_to_another_row_is_refused(store):
    await bring(store, "current")
    lease = await take(store, "victim")
    await set_raw(store, "victim", current_value=await value_of(store, "current", "current_value"))
    before = await raw(store)

    with pytest.raises(Unreadable, match=r"^victim: .* another project"):
        await store.read(["victim"])
    with pytest.raises(Unreadable, match=r"^victim: "):
        await store.stage(lease, SecretStr("canary-next"), BEARER)
    assert await raw(store) == before


async def test_rekeying_seals_everything_with_the_first_key_and_keeps_every_value(store_url, key):
    new = SecretStr(new_key())
    async with Store.open(store_url, key) as store:
        for state in WAYS:
            await bring(store, state)
        before = await store.read(WAYS)
    both = SecretStr(f"{new.get_secret_value()},{key.get_secret_value()}")
    async with Store.open(store_url, both) as store:
        assert await store.rekey() == len(WAYS)

    async with Store.open(store_url, new) as store:
        assert await store.read(WAYS) == before
        with pytest.raises(Reused):
            await store.stage(await take(store, "another"), SecretStr("canary-current-0"), BEARER)
    with pytest.raises(StoreError, match="another key"):
        async with Store.open(store_url, key):
            pass


async def test_rekeying_does_all_or_nothing(store_url, key):
    async with Store.open(store_url, key) as store:
        for state in ("current", "overlap"):
            await bring(store, state)
        await set_raw(store, "overlap", previous_value="altered")
        before = await raw(store)
        with pytest.raises(Unreadable, match=r"^overlap: "):
            await store.rekey()
        assert await raw(store) == before


def forms(value):
    """A value as it would look in a file: plain, in hex, in base64 at any offset."""
    plain = value.encode()
    shifted = [base64.b64encode(b"x" * offset + plain)[4 if offset else 0 : -4] for offset in range(3)]
    return [plain, plain.hex().encode(), plain.hex().upper().encode(), *shifted]


async def test_no_value_can_be_found_in_what_is_stored(store, store_url, tmp_path):
    for state in WAYS:
        await bring(store, state)
    await store.note_failure(await take(store, "current"), 1)
    planted = ["canary-in-the-address", *(f"canary-{state}-" for state in WAYS)]
    stored = [repr(await raw(store)).encode()]
    if store_url.startswith("sqlite"):
        with sqlite3.connect(tmp_path / "records.db") as source, sqlite3.connect(tmp_path / "backup.db") as backup:
            source.backup(backup)
        source.close()
        backup.close()
        stored += [path.read_bytes() for path in tmp_path.iterdir()]
        assert {path.name for path in tmp_path.iterdir()} >= {"records.db", "records.db-wal", "backup.db"}

    assert [form for value in planted for form in forms(value) for content in stored if form in content] == []
    assert any(b"worker-1" in content for content in stored)


async def test_a_fresh_file_that_another_process_is_writing_right_now_can_be_opened(tmp_path, key):
    other = sqlite3.connect(tmp_path / "records.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    ending = threading.Timer(0.2, lambda: other.execute("ROLLBACK"))
    ending.start()

    async with Store.open(f"sqlite:///{tmp_path}/records.db", key) as store:
        assert await store.all_ids() == []

    ending.join()
    other.close()
