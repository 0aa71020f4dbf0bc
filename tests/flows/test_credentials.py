"""Credentials made here, through the flows, the blocks and the command."""

import asyncio
import json
import os
import sys
from datetime import UTC, datetime, timedelta

import pytest
from prefect.artifacts import Artifact
from prefect.blocks.system import Secret
from pydantic import SecretStr
from sqlalchemy import update
from sqlalchemy.ext.asyncio import create_async_engine

from flows.__main__ import main
from flows.close_overlaps import close_overlaps
from flows.rotate_credentials import rotate_credentials
from jelou_rotation.records import new_key
from jelou_rotation.records.schema import records
from jelou_rotation.records.store import Store
from jelou_rotation.row import AuthType
from tasks.runs import Mode

MANIFEST = """\
projectId,authType,authorization,publishTo,minimumAge
prj-1,bearer,generate,block:secret/receiver-1,0
"""


class Informed:
    """What a receiver accepts that reads its Prefect block at each delivery."""

    def __init__(self):
        self.document = {}

    def isdisjoint(self, presented):
        return presented.isdisjoint({slot["value"] for slot in self.document.values() if isinstance(slot, dict)})


@pytest.fixture
def receiver(simulator, monkeypatch, tmp_path):
    monkeypatch.setenv("JELOU_STORE_URL", f"sqlite:///{tmp_path}/records.db")
    monkeypatch.setenv("JELOU_STORE_KEY", new_key())
    simulator.add_project("prj-1")
    simulator.receivers["prj-1"].accepts = receiver = Informed()
    save = Secret.asave

    async def saved(block, name, **options):
        receiver.document = block.get()
        return await save(block, name, **options)

    monkeypatch.setattr(Secret, "asave", saved)
    return receiver


async def rotate(mode=Mode.ROTATE, **parameters):
    return await rotate_credentials(MANIFEST, mode, return_state=True, **parameters)


async def test_a_generated_credential_is_handed_over_in_a_block_and_given_to_jelou(simulator, receiver):
    state = await rotate()

    block = await Secret.aload("receiver-1")
    project = simulator.projects["prj-1"]
    assert state.message == "1 project is as wanted: 1 rotated."
    assert block.get()["current"]["value"] == project.authorization
    assert (await state.aresult()).as_json()["summary"]["byEvidence"] == {"receiver_checked": 1}
    assert project.authorization not in (await Artifact.aget("jelou-rotation-report")).data


async def test_the_scheduled_flow_retires_the_former_credential(simulator, receiver):
    await rotate()
    former = simulator.projects["prj-1"].authorization
    await rotate()
    open_overlap = await close_overlaps(MANIFEST, return_state=True)
    await end_overlaps_now()

    closed = await close_overlaps(MANIFEST, return_state=True)

    assert open_overlap.message == "1 project is as wanted: 1 unchanged."
    assert (await open_overlap.aresult()).as_json()["projects"][0]["overlapUntil"] > datetime.now(UTC).isoformat()
    assert (await closed.aresult()).as_json()["summary"]["byEvidence"] == {"old_refused": 1}
    assert former not in json.dumps(receiver.document)


async def end_overlaps_now():
    engine = create_async_engine(os.environ["JELOU_STORE_URL"].replace("sqlite:", "sqlite+aiosqlite:"))
    async with engine.begin() as connection:
        await connection.execute(update(records).values(overlap_until=datetime.now(UTC) - timedelta(seconds=1)))
    await engine.dispose()


async def test_a_leaked_credential_is_replaced_by_order_of_the_form(simulator, receiver):
    await rotate()
    leaked = simulator.projects["prj-1"].authorization

    state = await rotate(leaked=True, only=["prj-1"])

    assert (await state.aresult()).as_json()["summary"]["byEvidence"] == {"old_refused": 1}
    assert leaked not in json.dumps(receiver.document)


async def test_a_leak_without_a_name_is_refused(simulator, receiver):
    state = await rotate(leaked=True)

    assert "name the projects whose credentials leaked" in state.message
    assert not simulator.requests_by_method


# The command


@pytest.fixture
def stored(monkeypatch, tmp_path):
    """A record with a pending credential, parked."""
    monkeypatch.setenv("JELOU_STORE_URL", f"sqlite:///{tmp_path}/records.db")
    monkeypatch.setenv("JELOU_STORE_KEY", new_key())

    async def fill():
        async with opened() as store:
            lease = (await store.take(["prj-1"], "a test", "", 60))["prj-1"]
            await store.stage(lease, SecretStr("canary-pending"), AuthType.BEARER)
            await store.note_failure(lease, 1)

    asyncio.run(fill())


def opened():
    return Store.open(os.environ["JELOU_STORE_URL"], SecretStr(os.environ["JELOU_STORE_KEY"]))


async def record():
    async with opened() as store:
        return (await store.read(["prj-1"]))["prj-1"]


def test_credentials_are_shown_to_a_terminal_only(stored, capsys):
    assert main(["credential", "show", "prj-1"]) == 2
    refused = capsys.readouterr()
    assert main(["credential", "show", "prj-1", "--pipe"]) == 0
    shown = capsys.readouterr()

    assert "canary" not in refused.out + refused.err
    assert json.loads(shown.out)["pending"]["value"] == "canary-pending"


def test_a_terminal_is_shown_the_credentials(stored, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)

    assert main(["credential", "show", "prj-1"]) == 0
    assert "canary-pending" in capsys.readouterr().out


def test_a_project_without_a_record_is_said_to_have_none(stored, capsys):
    assert main(["credential", "show", "prj-2", "--pipe"]) == 1
    assert "no record of 'prj-2'" in capsys.readouterr().err


def test_a_person_lets_a_parked_project_take_part_again(stored):
    assert asyncio.run(record()).parked

    assert main(["unpark", "prj-1"]) == 0

    assert not asyncio.run(record()).parked


def test_a_new_key_takes_the_place_of_the_old_one(stored, monkeypatch, capsys):
    main(["store", "key"])
    new = capsys.readouterr().out.strip()
    old = os.environ["JELOU_STORE_KEY"]
    monkeypatch.setenv("JELOU_STORE_KEY", f"{new},{old}")

    assert main(["store", "rekey"]) == 0

    monkeypatch.setenv("JELOU_STORE_KEY", new)
    assert asyncio.run(record()).pending.value.get_secret_value() == "canary-pending"


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("JELOU_STORE_KEY", "", "JELOU_STORE_KEY: missing"),
        ("JELOU_STORE_KEY", "canary", "JELOU_STORE_KEY: expected one key or several"),
        ("JELOU_STORE_URL", "mysql://user:canary@host/x", "JELOU_STORE_URL: expected sqlite:///PATH"),
        ("JELOU_STORE_URL", "postgresql://user:canary@127.0.0.1:1/x", "cannot be used"),
    ],
)
def test_a_store_that_cannot_be_opened_is_refused_in_words(stored, monkeypatch, capsys, name, value, says):
    monkeypatch.setenv(name, value)

    assert main(["unpark", "prj-1"]) == 2

    said = capsys.readouterr().err
    assert says in said
    assert "canary" not in said
    assert "Traceback" not in said
