"""What the tests of whole runs share: a simulated Jelou, a receiver, a store, and a run without Prefect."""

import asyncio
import json
from uuid import uuid4

import pytest
from pydantic import SecretStr
from sqlalchemy import update
from sqlalchemy.ext.asyncio import create_async_engine

from jelou_rotation.errors import Passing
from jelou_rotation.life import Life
from jelou_rotation.records import new_key
from jelou_rotation.records.schema import records
from jelou_rotation.records.store import Store
from jelou_rotation.references import local_handlers
from jelou_rotation.rotation import open_rotation
from jelou_rotation.row import Row
from jelou_rotation.settings import Settings
from jelou_rotation.simulator import Receiver as Endpoint
from jelou_rotation.simulator import Simulator
from jelou_rotation.work import Orders

KEY = new_key()


class Jelou(Simulator):
    """The simulated Jelou, which notes every signing secret it has made, by project."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.made = {}

    def create(self, project_id, *arguments):
        project = super().create(project_id, *arguments)
        self.made.setdefault(project_id, []).append(project.signing_secret)
        return project

    def expect(self, project_id):
        """A project without an integration, whose receiver is ready."""
        self.receivers[project_id] = Endpoint()
        return self.receiver_url(project_id)


class Receiver:
    """The customer's side: accepts what the hand-over document says, as the real ones shall."""

    def __init__(self, simulator):
        self.simulator = simulator
        self.documents = []

    async def publish(self, target, document):
        content = json.loads(document)
        self.documents.append(content)
        slots = (content[slot] for slot in ("current", "pending", "previous"))
        self.simulator.receivers[target.partition("/")[2]].accepts |= {slot["value"] for slot in slots if slot}


class Full(Receiver):
    """One whose block cannot be written."""

    async def publish(self, *_arguments):
        raise LookupError("cannot be written through Prefect")


def row(project_id="prj-1", **settings):
    return Row.model_validate({"projectId": project_id} | settings, context={"allow_private_hosts": True})


def generated(project_id="prj-1", **settings):
    given = {"authType": "bearer", "authorization": "generate", "minimumAge": "0"}
    return row(project_id, **given | {"publishTo": f"block:secret/{project_id}"} | settings)


def opened(receiver, *rows, kind=Life, plan_only=False, max_failures=None, run_id=None, concurrency=128, **orders):
    return open_rotation(
        Settings.load().model_copy(update={"concurrency": concurrency}),
        rows,
        local_handlers(),
        plan_only=plan_only,
        publish=receiver.publish,
        run_id=run_id or str(uuid4()),
        orders=Orders(**orders),
        kind=kind,
        max_failures=max_failures,
    )


async def run(receiver, *rows, tries=4, plan_only=False, **options):
    """What a flow does, without Prefect."""
    async with opened(receiver, *rows, plan_only=plan_only, **options) as rotation:
        await again(rotation, rotation.plan, [row.project_id for row in rows], tries)
        if not plan_only:
            await again(rotation, rotation.apply, rotation.to_apply(), tries)
        results = {result.project_id: result for result in rotation.results()}
    return results[rows[0].project_id] if len(rows) == 1 else results


async def again(rotation, step, project_ids, tries=4):
    """As a task of Prefect tries again, but at once."""
    for _ in range(tries):
        try:
            return await step(project_ids)
        except Passing:
            pass
    return rotation.give_up(project_ids)


async def cancelled_during_the_post(receiver, simulator, chosen, *, times, **options):
    """The result of a run that is told to end, so many times, while its POST is under way."""
    async with opened(receiver, chosen, **options) as rotation:
        await rotation.plan([chosen.project_id])
        task = asyncio.create_task(rotation.apply([chosen.project_id]))
        while not simulator.requests_by_method["POST"]:  # noqa: ASYNC110 - the simulator lives in another thread
            await asyncio.sleep(0.005)
        for _ in range(times):
            task.cancel()
            await asyncio.sleep(0.005)
        with pytest.raises(asyncio.CancelledError):
            await task
        return rotation.results()[0]


def open_store():
    return Store.open(Settings.load().store_url.get_secret_value(), SecretStr(KEY))


async def record_of(project_id="prj-1"):
    async with open_store() as store:
        return (await store.read([project_id])).get(project_id)


async def set_record(**columns):
    """What time, another run or a person did to all records."""
    engine = create_async_engine(Settings.load().store_url.get_secret_value().replace("sqlite:", "sqlite+aiosqlite:"))
    async with engine.begin() as connection:
        await connection.execute(update(records).values(**columns))
    await engine.dispose()
