"""A process that is killed for real at any moment leaves a row that the next run finishes with the same value."""

import asyncio
import json
import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr

from jelou_rotation.records import Step, new_key
from jelou_rotation.records.store import Store
from jelou_rotation.simulator import Simulator, running

PROGRAM = Path(__file__).parent / "rotate.py"
NEVER = -1
AT_ONCE = 3
SIGKILLED = -9


@pytest.fixture
def simulator(monkeypatch, tmp_path):
    simulator = Simulator()
    monkeypatch.setenv("JELOU_API_KEY", "demo-key")
    monkeypatch.setenv("JELOU_ALLOW_PRIVATE_HOSTS", "true")
    monkeypatch.setenv("JELOU_STORE_URL", f"sqlite:///{tmp_path}/records.db")
    monkeypatch.setenv("JELOU_STORE_KEY", new_key())
    with running(simulator) as url:
        monkeypatch.setenv("JELOU_BASE_URL", f"{url}/platform/v1")
        yield simulator


class Informed:
    """What a receiver accepts: the document that was handed over, read anew for each delivery."""

    def __init__(self, path):
        self.path = path

    def isdisjoint(self, presented):
        slots = json.loads(self.path.read_bytes()).values() if self.path.exists() else ()
        return presented.isdisjoint({slot["value"] for slot in slots if isinstance(slot, dict)})


async def rotate(project_id, kill_at=NEVER):
    process = await asyncio.create_subprocess_exec(
        sys.executable, PROGRAM, project_id, str(kill_at), stdout=asyncio.subprocess.PIPE, env=os.environ
    )
    output, _ = await process.communicate()
    return process.returncode, output.decode().split()


async def all_records():
    async with Store.open(os.environ["JELOU_STORE_URL"], SecretStr(os.environ["JELOU_STORE_KEY"])) as store:
        return await store.read(await store.all_ids())


def prepare(simulator, tmp_path, project_id):
    simulator.add_project(project_id)
    simulator.receivers[project_id].accepts = Informed(tmp_path / f"secret-{project_id}")


async def test_killed_at_every_step_of_its_life_a_row_is_finished_with_the_one_value(simulator, tmp_path):
    prepare(simulator, tmp_path, "whole")
    _, (moments, outcome) = await rotate("whole")
    assert outcome == "rotated"
    slots = asyncio.Semaphore(AT_ONCE)

    async def killed_and_run_again(moment):
        project_id = f"prj-{moment}"
        prepare(simulator, tmp_path, project_id)
        async with slots:
            killed, _ = await rotate(project_id, moment)
            code, (_, outcome) = await rotate(project_id)
        values = {body["authorization"] for body in simulator.projects[project_id].received}
        return killed, code, outcome in {"rotated", "not_due"}, len(values)

    results = await asyncio.gather(*map(killed_and_run_again, range(int(moments))))

    assert len(results) > 15
    assert dict(enumerate(results)) == dict.fromkeys(range(len(results)), (SIGKILLED, 0, True, 1))
    records = await all_records()
    for project_id, record in records.items():
        assert (record.step, record.pending) == (Step.IDLE, None)
        assert record.held_until is None or record.held_until < datetime.now(UTC) + timedelta(seconds=1)
        assert simulator.projects[project_id].authorization == record.current.value.get_secret_value()


async def test_two_runs_at_once_rotate_every_project_once(simulator, tmp_path, monkeypatch, store_url):
    monkeypatch.setenv("JELOU_STORE_URL", store_url)
    projects = [f"prj-{number}" for number in range(12)]
    for project_id in projects:
        prepare(simulator, tmp_path, project_id)

    runs = await asyncio.gather(*(rotate(",".join(projects)) for _ in range(2)))

    assert [code for code, _ in runs] == [0, 0]
    outcomes = [set(pair) for pair in zip(*(words[1:] for _, words in runs), strict=True)]
    assert outcomes == [{"rotated", "not_due"}] * len(projects)
    records = await all_records()
    for project_id in projects:
        (body,) = simulator.projects[project_id].received
        assert body["authorization"] == records[project_id].current.value.get_secret_value()
