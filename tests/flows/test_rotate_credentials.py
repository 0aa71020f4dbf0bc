"""The flow against a real Prefect server and a simulated Jelou."""

import asyncio
import json
import os
import signal

import pytest
from prefect.artifacts import Artifact
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import TaskRunFilter, TaskRunFilterFlowRunId

from flows.rotate_credentials import rotate_credentials
from jelou_rotation.errors import ManifestError
from jelou_rotation.outcomes import Outcome
from jelou_rotation.report import Report, RowsNeedAttention
from jelou_rotation.simulator import Fault
from tasks.projects import rotate_projects
from tasks.runs import Mode

MANIFEST = """\
projectId,webhookUrl,authType,authorization,tags
prj_1,,bearer,env:TOKEN_1,pilot
prj_2,,bearer,env:TOKEN_2,
prj_3,https://new.example/3,,,
"""


@pytest.fixture
def projects(simulator, monkeypatch):
    for number in (1, 2, 3):
        simulator.add_project(f"prj_{number}", f"https://old.example/{number}")
        monkeypatch.setenv(f"TOKEN_{number}", f"canary-{number}")
    return simulator.projects


async def run(manifest=MANIFEST, mode=Mode.ROTATE, **parameters):
    return await rotate_credentials(manifest, mode, return_state=True, **parameters)


async def recorded(state, names):
    """The flow run and its task runs; the server learns of task runs a moment after they end."""
    flow_run_id = state.state_details.flow_run_id
    ran = TaskRunFilter(flow_run_id=TaskRunFilterFlowRunId(any_=[flow_run_id]))
    async with get_client() as client, asyncio.timeout(20):
        task_runs = []
        while sorted(task_run.name for task_run in task_runs if _has_ended(task_run)) != names:
            await asyncio.sleep(0.1)
            task_runs = await client.read_task_runs(task_run_filter=ran)
        return await client.read_flow_run(flow_run_id), task_runs


def _has_ended(task_run):
    """A task run may be known before its state is."""
    return task_run.state is not None and task_run.state.is_final()


async def test_a_plan_is_what_runs_when_nobody_says_more_and_it_writes_nothing(simulator, projects, tmp_path):
    state = await rotate_credentials(MANIFEST, return_state=True)

    assert state.is_completed()
    assert state.message == "3 projects: 3 would change."
    assert set(simulator.requests_by_method) == {"GET"}


async def test_a_rotation_rotates_verifies_and_reports(simulator, projects, tmp_path):
    state = await run()

    assert state.is_completed()
    assert state.message == "All 3 projects are as wanted: 2 rotated, 1 updated."
    assert [projects[f"prj_{number}"].authorization for number in (1, 2)] == ["canary-1", "canary-2"]
    assert projects["prj_3"].webhook_url == "https://new.example/3"
    (report,) = tmp_path.glob("reports/*/report.json")
    assert json.loads(report.read_text())["summary"]["byEvidence"] == {"read_back": 3}
    assert not (report.parent / "retry.yaml").exists()


async def test_the_report_can_be_read_in_the_prefect_ui(projects):
    await run()

    page = await Artifact.aget("jelou-rotation-report")
    rows = await Artifact.aget("jelou-rotation-rows")
    progress = await Artifact.aget("jelou-rotation-progress")
    assert "All 3 projects are as wanted" in page.data
    assert [row["outcome"] for row in json.loads(rows.data)] == ["rotated", "rotated", "updated"]
    assert progress.data == 100.0


async def test_each_project_is_a_task_run_named_by_it_and_the_run_says_what_it_does(projects):
    names = ["prj_1", "prj_1", "prj_2", "prj_2", "prj_3", "prj_3"]
    flow_run, task_runs = await recorded(await run(), names)

    assert flow_run.name == "rotate pasted text, 3 projects"
    assert {task_run.state_name for task_run in task_runs} == {"Completed"}


async def test_rows_below_what_was_asked_fail_the_run_in_words_and_can_be_run_again(simulator, projects, tmp_path):
    simulator.add_fault(Fault(kind="status", status=422, method="PATCH", project_id="prj_2", times=1))
    del simulator.projects["prj_3"]

    state = await run()

    assert state.is_failed()
    assert state.message == "2 of 3 projects need attention: 1 failed, 1 missing."
    (retry,) = tmp_path.glob("reports/*/retry.yaml")
    again = await run(str(retry))
    assert again.message == "1 of 2 projects needs attention: 1 missing."
    assert projects["prj_2"].authorization == "canary-2"


async def test_a_plain_call_raises_with_the_report(simulator, projects):
    del simulator.projects["prj_3"]

    with pytest.raises(RowsNeedAttention) as caught:
        await rotate_credentials(MANIFEST)

    assert [row.outcome for row in caught.value.report.needs_attention] == [Outcome.MISSING]


async def test_a_plain_call_returns_the_report(projects):
    assert isinstance(await rotate_credentials(MANIFEST), Report)


async def test_passing_trouble_is_tried_again_by_the_task(simulator, projects, monkeypatch):
    monkeypatch.setattr("tasks.ramp.rotate_projects", rotate_projects.with_options(retry_delay_seconds=0.01))
    simulator.add_fault(Fault(kind="status", status=503, method="PATCH", project_id="prj_1", times=3))

    state = await run()

    assert state.is_completed()
    assert (await state.aresult()).requests["retries"] == 3


async def test_only_the_projects_chosen_are_touched(simulator, projects):
    state = await run(only=["tag:pilot"])

    assert state.message == "1 project is as wanted: 1 rotated."
    assert not projects["prj_2"].received


async def test_bad_input_is_refused_in_the_states_message_with_nothing_sent_and_nothing_written(simulator, tmp_path):
    state = await run("projectId,webhookUrl\nprj_1,http://x.example/\n,https://x.example/\n")

    assert state.is_failed()
    assert state.message == (
        "Refused, nothing was sent. manifest: 2 faults:\n"
        "  pasted text, line 2, webhookUrl: expected an https:// URL;\n"
        "  pasted text, line 3, projectId: no projectId"
    )
    with pytest.raises(ManifestError):
        await state.aresult()
    assert not simulator.requests_by_method
    assert not list(tmp_path.iterdir())


async def test_a_secret_block_is_read_as_the_text_it_holds(simulator, projects):
    await Secret(value="0123").asave("numeric", overwrite=True)

    await run("projectId,authType,authorization\nprj_1,bearer,block:secret/numeric\n")

    assert projects["prj_1"].authorization == "0123"


async def test_a_missing_block_is_named_before_anything_is_sent(simulator, projects):
    state = await run("projectId,authType,authorization\nprj_1,bearer,block:secret/absent\nprj_2,bearer,env:ABSENT\n")

    assert "block:secret/absent, authorization of prj_1: cannot be read from Prefect" in state.message
    assert "env:ABSENT, authorization of prj_2: this environment variable is not set" in state.message
    assert not simulator.requests_by_method


async def test_the_gateways_own_key_may_be_in_a_block(simulator, projects, monkeypatch):
    await Secret(value="demo-key").asave("jelou-key", overwrite=True)
    monkeypatch.setenv("JELOU_API_KEY", "block:secret/jelou-key")

    assert (await run()).is_completed()


async def test_a_run_told_to_end_stops_writing_and_reports_what_was_done(simulator, projects, tmp_path):
    async def tell_at_the_first_patch():
        while not simulator.requests_by_method["PATCH"]:  # noqa: ASYNC110 - the simulator runs in another thread
            await asyncio.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    simulator.add_fault(Fault(kind="delay", delay_seconds=600, method="PATCH"))
    async with asyncio.timeout(20):
        state, _ = await asyncio.gather(run(), tell_at_the_first_patch())

    assert state.is_failed()
    assert state.message.startswith("3 of 3 projects need attention")
    assert list(tmp_path.glob("reports/*/report.json"))
    assert {project.authorization for project in projects.values()} == {"old"}
