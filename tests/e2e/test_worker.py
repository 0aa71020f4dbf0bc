"""The deployments of prefect.yaml on a real Prefect server, run by a real process worker."""

import os
import signal
from collections.abc import Iterator

import pytest

from jelou_rotation.simulator import Fault, Simulator, running
from tests.e2e.live_prefect import Prefect, eventually, live_prefect

HANGING_SECONDS = 600
SETTINGS = {
    # One row after the other, so that a PATCH that hangs holds up all rows behind it.
    "JELOU_CONCURRENCY": "1",
    "JELOU_TIMEOUT_SECONDS": str(HANGING_SECONDS),
    "NEW_1": "canary-1",
    "NEW_2": "canary-2",
    "NEW_3": "canary-3",
}


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    simulator = Simulator()
    with running(simulator):
        yield simulator


@pytest.fixture(scope="module")
def prefect(database: str, simulator: Simulator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prefect]:
    folder = tmp_path_factory.mktemp("live")
    with live_prefect(folder, database, simulator, SETTINGS, deployment="rotate-manual") as prefect:
        yield prefect


@pytest.fixture
def projects(simulator: Simulator):
    simulator.faults.clear()
    for number in (1, 2, 3):
        simulator.add_project(f"prj_{number}")
    return simulator.projects


@pytest.fixture
def second_patch_hangs(simulator: Simulator, projects):
    """The first PATCH is answered at once, any other hardly ever."""
    simulator.add_fault(Fault(kind="delay", delay_seconds=0.001, method="PATCH", times=1))
    simulator.add_fault(Fault(kind="delay", delay_seconds=HANGING_SECONDS, method="PATCH"))


MANIFEST = """\
projectId,authType,authorization
prj_1,bearer,env:NEW_1
prj_2,bearer,env:NEW_2
prj_3,bearer,env:NEW_3
"""


def credentials(projects):
    return {project.authorization for project in projects.values()}


def patches_received(projects):
    return sum(len(project.received) for project in projects.values())


def test_a_worker_rotates_and_its_report_is_in_the_ui(prefect: Prefect, projects):
    run_id = prefect.start(MANIFEST)

    state = prefect.end_of(run_id)

    assert (state["name"], state["message"]) == ("Completed", "All 3 projects are as wanted: 3 rotated.")
    assert credentials(projects) == {"canary-1", "canary-2", "canary-3"}
    assert state["message"] in prefect.report_artifact(run_id)


def test_a_cancelled_run_stops_writing_and_reports_what_was_done(prefect: Prefect, projects, second_patch_hangs):
    run_id = prefect.start(MANIFEST)
    eventually(lambda: patches_received(projects) == 2)
    met_it = prefect.start(MANIFEST)
    refusal = prefect.end_of(met_it)
    prefect.cancel(run_id)

    state = prefect.end_of(run_id)

    assert refusal["name"] == "Cancelled"
    assert "is at work, and only one run may write at a time" in refusal["message"]
    assert state["name"] == "Cancelled"
    outcomes = {row["projectId"]: row["outcome"] for row in prefect.report(run_id)["projects"]}
    assert sorted(outcomes.values()) == ["not_started", "rotated", "unknown"]
    assert {name for name, outcome in outcomes.items() if outcome == "rotated"} == {
        name for name, project in projects.items() if project.authorization != "old"
    }
    assert "2 of 3 projects need attention" in prefect.report_artifact(run_id)
    assert patches_received(projects) == 2


def test_after_a_killed_run_the_next_one_finishes_the_rows_with_the_same_values(
    prefect: Prefect, simulator: Simulator, projects, second_patch_hangs
):
    killed = prefect.start(MANIFEST)
    eventually(lambda: patches_received(projects) == 2)
    os.kill(prefect.process_of(killed), signal.SIGKILL)
    assert prefect.end_of(killed)["name"] == "Crashed"
    simulator.faults.clear()

    waiting = prefect.start(MANIFEST)
    eventually(lambda: "died with the lock; it comes free within a minute" in prefect.log(waiting))
    assert patches_received(projects) == 2
    prefect.let_the_lease_run_out()
    state = prefect.end_of(waiting)

    assert state["name"] == "Completed"
    assert patches_received(projects) == 5
    for number in (1, 2, 3):
        sent = [body["authorization"] for body in projects[f"prj_{number}"].received]
        assert set(sent) == {f"canary-{number}"}
        assert projects[f"prj_{number}"].authorization == f"canary-{number}"
