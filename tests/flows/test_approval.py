"""Consent to a plan, by its hash in a second run or by resuming the one run, against a real Prefect server."""

import asyncio
import json

import pytest
from prefect.artifacts import Artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateName

from flows.rotate_credentials import rotate_credentials
from jelou_rotation.errors import LimitExceeded, NotApproved
from jelou_rotation.simulator import Fault
from tasks.approval import Approval
from tasks.runs import Mode

MANIFEST = """\
projectId,webhookUrl,authType,authorization,tags
prj_1,,bearer,env:TOKEN_1,pilot
prj_2,,bearer,env:TOKEN_2,
prj_3,https://old.example/new,,,
"""


@pytest.fixture
def projects(simulator, monkeypatch):
    for number in (1, 2, 3):
        simulator.add_project(f"prj_{number}", f"https://old.example/{number}")
        monkeypatch.setenv(f"TOKEN_{number}", f"canary-{number}")
    return simulator.projects


async def run(manifest=MANIFEST, mode=Mode.ROTATE, **parameters):
    return await rotate_credentials(manifest, mode, return_state=True, **parameters)


async def planned():
    report = await (await run(mode=Mode.PLAN)).aresult()
    return report.run.plan


async def test_a_rotation_of_the_approved_plan_does_it(simulator, projects):
    state = await run(approved_plan=await planned())

    assert state.message == "All 3 projects are as wanted: 2 rotated, 1 updated."


async def test_what_changed_since_the_plan_was_approved_is_said_and_nothing_is_sent(simulator, projects):
    approved = await planned()
    projects["prj_3"].webhook_url = "https://elsewhere.example/3"

    state = await run(MANIFEST.replace("env:TOKEN_2", "env:TOKEN_3"), approved_plan=approved)

    assert state.is_failed()
    assert state.message.startswith(f"Refused, nothing was sent. the plan is no longer {approved}")
    assert "prj_2: the approved change is authorization: not readable -> env:TOKEN_2, no way back; now" in state.message
    assert "prj_3: the approved change is webhookUrl: https://old.example/3 -> " in state.message
    assert "prj_1" not in state.message
    assert simulator.requests_by_method["PATCH"] == 0
    with pytest.raises(NotApproved):
        await state.aresult()


async def test_a_plan_nobody_made_is_not_taken_for_an_approval(simulator, projects):
    state = await run(approved_plan="0123456789ab")

    assert "this Prefect server knows no plan 0123456789ab" in state.message
    assert simulator.requests_by_method["PATCH"] == 0


async def answer(**given):
    """As a person does in the UI, once the run is paused; returns what the page says."""
    paused = FlowRunFilter(state=FlowRunFilterState(name=FlowRunFilterStateName(any_=["Paused"])))
    async with get_client() as client, asyncio.timeout(30):
        while not (runs := await client.read_flow_runs(flow_run_filter=paused)):  # noqa: ASYNC110 - a server elsewhere
            await asyncio.sleep(0.05)
        keyset = runs[0].state.state_details.run_input_keyset
        while not (inputs := await client.filter_flow_run_input(runs[0].id, keyset["description"], 1, set())):  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.05)
        await client.resume_flow_run(runs[0].id, run_input=given)
    return json.loads(inputs[0].value)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr("tasks.approval._POLL_SECONDS", 0.1)


async def test_a_paused_run_goes_on_when_a_person_types_how_many_projects_would_change(simulator, projects, quick):
    state, page = await asyncio.gather(run(approval=Approval.PAUSE), answer(projects=3))

    assert state.message == "All 3 projects are as wanted: 2 rotated, 1 updated."
    assert "**3 projects would change**" in page
    assert "| `prj_1` | authorization: not readable -&gt; env:TOKEN\\_1" in page


async def test_the_plan_can_be_read_while_the_run_waits(simulator, projects, quick):
    state, page = await asyncio.gather(run(approval=Approval.PAUSE), answer(projects=1))

    name = page.partition("(plan `")[2][:12]
    assert await Artifact.aget(f"jelou-rotation-plan-{name}")
    assert state.message == "Refused, nothing was sent. 3 projects would change, and 1 was typed"
    assert simulator.requests_by_method["PATCH"] == 0


async def test_without_an_answer_nothing_is_applied(simulator, projects, quick, monkeypatch):
    monkeypatch.setattr("tasks.approval.APPROVAL_SECONDS", 1)

    state = await run(approval=Approval.PAUSE)

    assert state.is_failed()
    assert "nobody approved plan" in state.message
    assert simulator.requests_by_method["PATCH"] == 0


async def test_only_large_plans_are_asked_for(simulator, projects):
    state = await run(approval=Approval.PAUSE, approve_above=3)

    assert state.is_completed()


async def test_a_plan_above_the_limits_is_refused_with_the_way_to_allow_it_once(simulator, projects):
    state = await run(max_changes="50%")

    assert state.is_failed()
    assert state.message == (
        "Refused, nothing was sent. the plan is above the limits of this run:\n"
        "  max_changes: 3 of 3 projects would change, 50% allows 1."
        " To allow it once: max_changes=3 in the form, --max-changes 3 in a terminal"
    )
    assert simulator.requests_by_method["PATCH"] == 0
    with pytest.raises(LimitExceeded):
        await state.aresult()
    assert (await run(max_changes="3")).is_completed()


async def test_a_canary_that_fails_stops_the_run_before_the_next_step(simulator, projects):
    simulator.add_fault(Fault(kind="status", status=422, method="PATCH", project_id="prj_1"))

    state = await run(ramp=["tag:pilot", "rest"], ramp_pause=0)

    report = (await state.aresult(raise_on_failure=False)).report
    assert [row.outcome for row in report.results] == ["failed", "not_started", "not_started"]


async def test_a_canary_that_somebody_changes_during_the_pause_stops_the_run(simulator, projects, monkeypatch):
    async def meanwhile(_minutes):
        projects["prj_1"].webhook_url = "https://elsewhere.example/1"

    monkeypatch.setattr("tasks.ramp._wait", meanwhile)

    state = await run(ramp=["tag:pilot"], ramp_pause=5)

    report = (await state.aresult(raise_on_failure=False)).report
    assert [row.outcome for row in report.results] == ["drifted", "not_started", "not_started"]
    assert report.results[1].error == "the run was stopped: 1 of the first 1 failed"
    assert not projects["prj_2"].received
