"""A rotation in shards: a real Prefect server, three real workers, one of them killed, the records in PostgreSQL."""

import asyncio
import os
import re
import signal
from collections import Counter
from pathlib import Path

import pytest

from jelou_rotation.records import new_key
from jelou_rotation.simulator import Fault, Simulator, running
from tests.conftest import PASSWORD, run_sql
from tests.e2e.live_prefect import eventually, live_server

ROWS = 60
SHARDS = 3
# More than one part has rows: only several of them can have so many failures.
ALLOWED = 24
# One after the other, so that a part takes some seconds.
SETTINGS = {"JELOU_CONCURRENCY": "1"}
# A lost part, and the leases of its rows, are given up sooner than in earnest.
HURRY = {
    "tasks/shards.py": ("LOST_SECONDS = 30.0", "LOST_SECONDS = 6.0"),
    "jelou_rotation/work.py": ("LEASE_SECONDS = 30.0", "LEASE_SECONDS = 6.0"),
}


@pytest.fixture(scope="module")
def simulator():
    simulator = Simulator()
    with running(simulator):
        yield simulator


@pytest.fixture(scope="module")
def server(simulator, database, postgres, tmp_path_factory):
    """A Prefect server with one deployment and no worker."""
    settings = SETTINGS | {
        "JELOU_STORE_URL": f"postgresql://postgres:{PASSWORD}@127.0.0.1:{postgres}/postgres",
        "JELOU_STORE_KEY": new_key(),
    }
    with live_server(tmp_path_factory.mktemp("live"), database, simulator, settings) as server:
        for name, (usual, hurried) in HURRY.items():
            source = (server.clone / name).read_text()
            assert usual in source
            (server.clone / name).write_text(source.replace(usual, hurried))
        server.deploy("rotate-manual")
        yield server


@pytest.fixture
def prefect(server, postgres):
    """With an empty record store."""
    asyncio.run(run_sql(postgres, "DROP SCHEMA public CASCADE; CREATE SCHEMA public"))
    return server


@pytest.fixture
def three_workers(server):
    """With room for one run each: the run that waits for its parts has one of them to itself."""
    with server.worker("--limit", "1"), server.worker("--limit", "1"), server.worker("--limit", "1"):
        yield


@pytest.fixture
def one_worker(server):
    with server.worker():
        yield


@pytest.fixture
def projects(simulator):
    simulator.faults.clear()
    for number in range(ROWS):
        simulator.add_project(f"prj-{number}")
        simulator.receivers[f"prj-{number}"].checks = False
    return simulator.projects


def manifest(projects, *columns):
    """Every project is due whenever it is looked at: only the record of this run keeps it from a second credential."""
    given = {"authType": "bearer", "authorization": "generate", "minimumAge": "0", "probe": "off"}
    names = ["projectId", *given, *columns]
    rows = ({"projectId": each.project_id, "webhookUrl": each.webhook_url} | given for each in projects.values())
    return "\n".join([",".join(names), *(",".join(row[name] for name in names) for row in rows)]) + "\n"


def parts(prefect):
    """The runs of the parts that are at work, by their names."""
    runs = prefect.post(
        "/flow_runs/filter", flow_runs={"name": {"like_": ", part "}, "state": {"type": {"any_": ["RUNNING"]}}}
    )
    return {run["name"].rpartition(", ")[2]: run for run in runs}


def parent_of(process):
    return int(re.search(r"^PPid:\s*(\d+)", Path(f"/proc/{process}/status").read_text(), re.MULTILINE)[1])


def kill_worker_of(prefect, run):
    """As if its machine were gone: the worker first, or it would tell Prefect of the flow's death."""
    process = prefect.process_of(run["id"])
    os.kill(parent_of(process), signal.SIGKILL)
    os.kill(process, signal.SIGKILL)


def rotate(prefect, **parameters):
    return prefect.run("rotate-credentials/rotate-manual", mode="rotate", shards=SHARDS, **parameters)


def test_a_worker_killed_half_way_costs_nothing_but_time(prefect, three_workers, simulator, projects):
    simulator.add_fault(Fault(kind="delay", delay_seconds=0.06))

    run_id = rotate(prefect, manifest=manifest(projects))
    victim = eventually(lambda: parts(prefect).get("part 2 of 3"))
    second_part = [projects[f"prj-{number}"] for number in range(1, ROWS, SHARDS)]
    eventually(lambda: sum(len(project.received) for project in second_part) >= 10)
    kill_worker_of(prefect, victim)
    rotated_by_then = {project.project_id for project in second_part if project.received}
    assert len(rotated_by_then) < len(second_part)

    state = prefect.end_of(run_id)

    assert (state["name"], state["message"]) == ("Completed", f"All {ROWS} projects are as wanted: {ROWS} rotated.")
    report = prefect.report(run_id)
    assert Counter(row["projectId"] for row in report["projects"]) == dict.fromkeys(projects, 1)
    for project in projects.values():
        assert len({body["authorization"] for body in project.received}) == 1
        assert project.authorization == project.received[0]["authorization"]
    twice = {row["projectId"] for row in report["projects"] if any("earlier try" in note for note in row["notes"])}
    assert twice <= rotated_by_then
    assert len(twice) >= 5
    told = [moment["text"] for moment in report["run"]["timeline"]]
    assert "part 2 of 3 was lost: no sign of life for 6 seconds" in told
    assert "part 2 of 3 is taken up again, try 2" in told
    assert sum(text.endswith("rotated") and "ended" in text for text in told) == SHARDS
    assert prefect.last_state(victim["id"])["name"] == "Crashed"


def test_too_many_failures_in_all_parts_together_stop_every_part(prefect, one_worker, simulator, projects):
    simulator.add_fault(Fault(kind="status", status=422, method="PATCH", delay_seconds=0.5))

    run_id = rotate(prefect, manifest=manifest(projects, "webhookUrl"), max_failures=str(ALLOWED))

    state = prefect.end_of(run_id)
    report = prefect.report(run_id)
    outcomes = report["summary"]["byOutcome"]
    assert state["name"] == "Failed"
    assert sum(outcomes.values()) == ROWS
    assert ALLOWED < outcomes["failed"] < ROWS
    (reason,) = {row["error"] for row in report["projects"] if row["outcome"] == "not_started"}
    assert re.fullmatch(rf"the run was stopped: \d+ projects need attention, max_failures allows {ALLOWED}", reason)
    # Every row could move to another host, so the run has planned them all before any part began.
    assert report["run"]["timeline"][1]["text"] == f"planned: {ROWS} projects would change"
    assert {project.authorization for project in projects.values()} == {"old"}
