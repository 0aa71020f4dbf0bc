"""A process that is killed for real at any moment leaves a row that the next run finishes with the same value."""

import asyncio
import json
import os
from datetime import UTC, datetime, timedelta
from multiprocessing import get_context

import pytest
from pydantic import SecretStr

from jelou_rotation.records import Step, new_key
from jelou_rotation.records.store import Store
from jelou_rotation.simulator import Simulator, running
from tests.e2e import rotate as program

NEVER = -1
AT_ONCE = 4
SIGKILLED = -9


@pytest.fixture(scope="module")
def processes():
    """Each is forked from one that has imported everything: a start of Python takes longer than what is done here."""
    processes = get_context("forkserver")
    processes.set_forkserver_preload([program.__name__])
    return processes


@pytest.fixture
def rotate(processes, tmp_path):
    async def rotate(*project_ids, kill_at=NEVER):
        told, teller = processes.Pipe(duplex=False)
        arguments = (project_ids, kill_at, tmp_path, dict(os.environ), teller)
        process = processes.Process(target=program.rotate, args=arguments)
        process.start()
        teller.close()
        await end_of(process)
        with told:
            return process.exitcode, told.recv() if process.exitcode == 0 else None

    return rotate


async def end_of(process):
    """Not in a thread: two threads that ask for the end of processes take the exit code from each other."""
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(process.sentinel, ended.set)
    await ended.wait()
    asyncio.get_running_loop().remove_reader(process.sentinel)
    process.join()


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


async def all_records():
    async with Store.open(os.environ["JELOU_STORE_URL"], SecretStr(os.environ["JELOU_STORE_KEY"])) as store:
        return await store.read(await store.all_ids())


def prepare(simulator, tmp_path, project_id):
    simulator.add_project(project_id)
    simulator.receivers[project_id].accepts = Informed(tmp_path / f"secret-{project_id}")


async def test_killed_at_every_step_of_its_life_a_row_is_finished_with_the_one_value(simulator, tmp_path, rotate):
    prepare(simulator, tmp_path, "whole")
    _, (moments, outcomes) = await rotate("whole")
    assert outcomes == ["rotated"]
    slots = asyncio.Semaphore(AT_ONCE)

    async def killed_and_run_again(moment):
        project_id = f"prj-{moment}"
        prepare(simulator, tmp_path, project_id)
        async with slots:
            killed, _ = await rotate(project_id, kill_at=moment)
            code, (_, (outcome,)) = await rotate(project_id)
        values = {body["authorization"] for body in simulator.projects[project_id].received}
        return killed, code, outcome in {"rotated", "not_due"}, len(values)

    results = await asyncio.gather(*map(killed_and_run_again, range(moments)))

    assert len(results) > 15
    assert dict(enumerate(results)) == dict.fromkeys(range(len(results)), (SIGKILLED, 0, True, 1))
    records = await all_records()
    soon = datetime.now(UTC) + timedelta(seconds=program.LEASE_SECONDS)
    for project_id, record in records.items():
        assert (record.step, record.pending) == (Step.IDLE, None)
        assert record.held_until is None or record.held_until < soon
        assert simulator.projects[project_id].authorization == record.current.value.get_secret_value()


async def test_two_runs_at_once_rotate_every_project_once(simulator, tmp_path, monkeypatch, store_url, rotate):
    monkeypatch.setenv("JELOU_STORE_URL", store_url)
    projects = [f"prj-{number}" for number in range(12)]
    for project_id in projects:
        prepare(simulator, tmp_path, project_id)

    runs = await asyncio.gather(*(rotate(*projects) for _ in range(2)))

    assert [code for code, _ in runs] == [0, 0]
    outcomes = [set(pair) for pair in zip(*(outcomes for _, (_, outcomes) in runs), strict=True)]
    assert outcomes == [{"rotated", "not_due"}] * len(projects)
    records = await all_records()
    for project_id in projects:
        (body,) = simulator.projects[project_id].received
        assert body["authorization"] == records[project_id].current.value.get_secret_value()
