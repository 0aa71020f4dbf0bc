"""The signing secret in a project's record, and the question that brings one."""

from datetime import UTC, datetime, timedelta

import pytest
from alembic import command
from alembic.config import Config
from pydantic import SecretStr
from sqlalchemy import select, text, update

from jelou_rotation.errors import LeaseLost, Unreadable
from jelou_rotation.gateway import Integration
from jelou_rotation.records import Cipher, SigningSecret, Step, database, new_key, schema
from jelou_rotation.records.store import Store
from jelou_rotation.row import AuthType

SECRET = SecretStr("canary-signing-secret")
SEEN = Integration("https://panel.example/hook", "bearer")


class Clock:
    def __init__(self):
        self.moment = datetime(2026, 5, 1, tzinfo=UTC)

    def __call__(self):
        return self.moment


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


async def take(store, project_id="prj"):
    return (await store.take([project_id], "worker-1", "run-1", 60))[project_id]


async def record(store, project_id="prj"):
    return (await store.read([project_id]))[project_id]


async def names(store, project_id="prj"):
    return [line.name for line in await store.history(project_id)]


async def bring(store, step):
    """A project at this step, by its lease; each step is named for the project."""
    lease = await take(store, step)
    if step is not Step.IDLE:
        await store.stage(lease, SecretStr(f"canary-{step}"), AuthType.BEARER)
    if step in {Step.SENT, Step.ROLLING_BACK}:
        await store.mark_sent(lease)
    if step is Step.ROLLING_BACK:
        await store.promote(lease, SEEN, None)
        await store.stage(lease, SecretStr(f"canary-{step}-2"), AuthType.BEARER)
        await store.mark_sent(lease)
        await store.begin_rollback(lease)
    return lease


TRANSITIONS = {
    "ask_signing_secret": lambda store, lease: store.ask_signing_secret(lease),
    "keep_signing_secret": lambda store, lease: store.keep_signing_secret(lease, SECRET),
    "forget_signing_question": lambda store, lease: store.forget_signing_question(lease),
}


@pytest.mark.parametrize("transition", TRANSITIONS)
async def test_each_is_possible_at_every_step_changes_no_credential_and_is_written_down(store, transition):
    for step in Step:
        lease = await bring(store, step)
        before, lines = await record(store, step), await names(store, step)
        after = await TRANSITIONS[transition](store, lease)

        assert after == await record(store, step)
        assert (after.step, after.current, after.pending) == (step, before.current, before.pending)
        assert await names(store, step) == [*lines, transition]


@pytest.mark.parametrize("lost", ["ran out", "given back"])
@pytest.mark.parametrize("transition", TRANSITIONS)
async def test_none_is_possible_without_the_lease(store, clock, transition, lost):
    lease = await take(store)
    if lost == "given back":
        await store.release({"prj": lease})
    else:
        clock.moment += timedelta(seconds=60)
    before = await record(store)

    with pytest.raises(LeaseLost, match=r"^prj: "):
        await TRANSITIONS[transition](store, lease)
    assert await record(store) == before
    assert await names(store) == []


async def test_a_new_record_knows_no_secret_and_nobody_asked_for_one(store):
    await take(store)

    told = await record(store)
    assert (told.signing, told.signing_asked) == (None, False)


async def test_a_question_stays_open_until_its_secret_is_kept_and_the_receiver_must_be_told(store, clock):
    lease = await take(store)
    asked = await store.ask_signing_secret(lease)
    assert (asked.signing, asked.signing_asked, asked.handed_over) == (None, True, True)

    kept = await store.keep_signing_secret(lease, SECRET)
    assert (kept.signing, kept.signing_asked, kept.handed_over) == (SigningSecret(SECRET, clock()), False, False)
    assert "canary" not in repr(kept)
    assert (await store.mark_handed_over(lease)).handed_over


async def test_a_lost_answer_leaves_the_question_open_beside_the_former_secret(store, clock):
    lease = await take(store)
    former = await store.keep_signing_secret(lease, SECRET)
    for _ in range(2):
        await store.ask_signing_secret(lease)

    told = await record(store)
    assert (told.signing, told.signing_asked) == (former.signing, True)
    assert await names(store) == ["keep_signing_secret", "ask_signing_secret", "ask_signing_secret"]


async def test_a_new_secret_takes_the_place_of_the_former_one(store, clock):
    lease = await take(store)
    await store.keep_signing_secret(lease, SECRET)
    clock.moment += timedelta(seconds=1)
    kept = await store.keep_signing_secret(lease, SecretStr("canary-next"))

    assert kept.signing == SigningSecret(SecretStr("canary-next"), clock())


async def test_a_refused_question_is_forgotten_and_what_was_kept_stays(store):
    lease = await take(store)
    before = await store.keep_signing_secret(lease, SECRET)
    await store.ask_signing_secret(lease)

    assert await store.forget_signing_question(lease) == before


async def test_a_rotation_leaves_the_signing_secret_alone(store):
    lease = await take(store)
    await store.keep_signing_secret(lease, SECRET)
    kept = (await store.ask_signing_secret(lease)).signing
    for value in ("canary-1", "canary-2"):
        await store.stage(lease, SecretStr(value), AuthType.BEARER)
        await store.mark_sent(lease)
        await store.promote(lease, SEEN, None)
    told = await store.retire(lease)

    assert (told.signing, told.signing_asked) == (kept, True)


async def test_what_was_kept_is_there_when_the_store_is_opened_again(store_url, key):
    async with Store.open(store_url, key) as store:
        lease = await take(store)
        await store.ask_signing_secret(lease)
        kept = await store.keep_signing_secret(lease, SECRET)

    async with Store.open(store_url, key) as store:
        assert await record(store) == kept


async def stored(store):
    """The rows of the records as the database holds them."""
    async with store._engine.connect() as connection:
        return (await connection.execute(select(schema.records))).fetchall()


async def test_the_secret_is_sealed(store, tmp_path):
    await store.keep_signing_secret(await take(store), SECRET)

    content = repr(await stored(store)).encode() + b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"worker-1" in content
    for form in (b"canary-signing-secret", b"canary-signing-secret".hex().encode()):
        assert form not in content


async def test_a_secret_that_was_moved_to_another_project_is_refused(store):
    await store.keep_signing_secret(await take(store), SECRET)
    await take(store, "victim")
    (sealed,) = [row.signing_value for row in await stored(store) if row.signing_value]
    async with store._engine.begin() as connection:
        victim = update(schema.records).where(schema.records.c.project_id == "victim")
        await connection.execute(victim.values(signing_value=sealed))

    with pytest.raises(Unreadable, match=r"^victim: .* another project"):
        await store.read(["victim"])


async def test_rekeying_seals_the_secret_anew(store_url, key):
    new = SecretStr(new_key())
    async with Store.open(store_url, key) as store:
        kept = await store.keep_signing_secret(await take(store), SECRET)
    async with Store.open(store_url, SecretStr(f"{new.get_secret_value()} {key.get_secret_value()}")) as store:
        await store.rekey()

    async with Store.open(store_url, new) as store:
        assert (await record(store)).signing == kept.signing


# Stores of before

ROW_OF_0001 = """
INSERT INTO jelou_records (
    project_id, step, current_value, current_auth_type, current_made_at, current_fingerprint,
    keeps_overlap, handed_over, failures, parked, made, fence
) VALUES (
    'prj', 'idle', :sealed, 'bearer', '2026-01-02 00:00:00+00:00', 'a mark', true, true, 2, false, 1, 7
)
"""


def upgrade_to_0001(connection):
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", "jelou_rotation:migrations")
    command.upgrade(config, "0001")


async def make_store_of_0001(store_url, key):
    engine = database.make_engine(database.parse_url(store_url))
    async with engine.begin() as connection:
        await connection.run_sync(upgrade_to_0001)
        await connection.execute(text(ROW_OF_0001), {"sealed": Cipher(key).seal("prj", "canary-of-before")})
    await engine.dispose()


async def test_a_store_of_before_is_upgraded_and_its_records_are_as_they_were(store_url, key):
    await make_store_of_0001(store_url, key)
    async with Store.open(store_url, key) as store:
        told = await record(store)
        assert told.current.value.get_secret_value() == "canary-of-before"
        assert (told.step, told.failures, told.current.made_at) == (Step.IDLE, 2, datetime(2026, 1, 2, tzinfo=UTC))
        assert (told.signing, told.signing_asked, told.handed_over) == (None, False, True)

        lease = await take(store)
        assert lease.fence == 8
        kept = await store.keep_signing_secret(lease, SECRET)
    async with Store.open(store_url, key) as store:
        assert await record(store) == kept
