"""The main job when a fifth of Jelou's answers fail."""

import json

import pytest

from flows.rotate_credentials import rotate_credentials
from jelou_rotation.simulator import Switches, passing_faults
from tasks.projects import plan_projects, rotate_projects
from tasks.runs import Mode

ROWS = 150


@pytest.fixture
def hurried(monkeypatch):
    """Retries that wait a moment instead of half a minute."""
    for name, task in (("tasks.projects.plan", plan_projects), ("tasks.ramp.rotate", rotate_projects)):
        monkeypatch.setattr(f"{name}_projects", task.with_options(retry_delay_seconds=0.02))


@pytest.mark.parametrize("shape", ["flat", "envelope"])
async def test_every_row_is_rotated_with_one_value_while_a_fifth_of_the_answers_fail(
    simulator, hurried, monkeypatch, tmp_path, shape
):
    simulator.switches = Switches(shape=shape)
    lines = ["projectId,webhookUrl,authType,authorization"]
    for number in range(ROWS):
        simulator.add_project(f"prj_{number}")
        monkeypatch.setenv(f"TOKEN_{number}", f"canary-{number}")
        lines.append(
            f"prj_{number},,bearer,env:TOKEN_{number}" if number % 3 else f"prj_{number},https://new.example/{number},,"
        )
    for fault in passing_faults(0.2):
        # Few of these: each slows the whole run down, which is what it is for and not what this is about.
        simulator.add_fault(fault.model_copy(update={"times": 3}) if fault.status == 429 else fault)

    state = await rotate_credentials("\n".join(lines), Mode.ROTATE, max_host_changes="", return_state=True)

    assert state.message == f"All {ROWS} projects are as wanted: {ROWS * 2 // 3} rotated, {ROWS // 3} updated."
    report = (await state.aresult()).as_json()
    assert report["summary"]["byEvidence"] == {"read_back": ROWS}
    assert report["summary"]["requests"]["retries"] > ROWS / 10
    assert report["summary"]["requests"]["PATCH"] == sum(len(each.received) for each in simulator.projects.values())
    for number in range(ROWS):
        project = simulator.projects[f"prj_{number}"]
        assert len({json.dumps(body) for body in project.received}) == 1
        assert project.authorization == (f"canary-{number}" if number % 3 else "old")
    kinds = {"200", "429", "500", "502", "503", "504", "reset_before", "reset_after", "empty", "truncated", "html"}
    assert kinds | {"garbage", "status_zero"} <= set(simulator.answers)
