"""What a run with shards refuses before any part is started; the parts themselves are in tests/e2e/test_shards.py."""

import pytest

from flows.rotate_credentials import rotate_credentials
from jelou_rotation.records import new_key
from tasks.approval import Approval
from tasks.runs import Mode

MANIFEST = "projectId,authType,authorization\nprj_1,bearer,generate\nprj_2,bearer,generate\n"


@pytest.fixture
def stored(simulator, monkeypatch):
    monkeypatch.setenv("JELOU_STORE_KEY", new_key())
    for number in (1, 2):
        simulator.add_project(f"prj_{number}")
    return simulator


async def run(mode=Mode.ROTATE, manifest=MANIFEST, **parameters):
    return await rotate_credentials(manifest, mode, return_state=True, **parameters)


async def test_shards_need_a_deployment_and_a_store_that_every_worker_can_reach(stored):
    state = await run(shards=2)

    assert state.is_failed()
    assert "shards: the parts are runs of a deployment, so this one must be too" in state.message
    assert "JELOU_STORE_URL: shards need a record store that every worker can reach: postgresql://" in state.message
    assert not stored.requests_by_method


async def test_without_a_store_the_key_is_asked_for(simulator):
    state = await run(shards=2, manifest="projectId,webhookUrl\nprj_1,https://panel.example/hook\n")

    assert "JELOU_STORE_KEY: shards need a record store" in state.message


@pytest.mark.parametrize(
    "parameters", [{"ramp": ["1"]}, {"approved_plan": "0123456789ab"}, {"approval": Approval.PAUSE}], ids=str
)
async def test_what_holds_for_one_plan_does_not_go_with_shards(stored, parameters):
    state = await run(shards=2, **parameters)

    assert "shards: ramp, approval and approved_plan do not go with it" in state.message
    assert not stored.requests_by_method


async def test_a_plan_is_one_run_whatever_the_shards(stored):
    assert (await run(Mode.PLAN, shards=2)).message == "2 projects: 2 would change."


async def test_a_part_of_no_run_is_refused_whoever_sets_it(stored, monkeypatch):
    plan = await run(Mode.PLAN)
    sha256 = (await plan.aresult()).run.manifest_sha256
    asked = dict(stored.requests_by_method)

    assert "part: is set by a run with shards; leave it empty" in (await run(part="2 of 3")).message
    assert "changed since the run began" in (await run(part="1/2/1/run/other")).message
    state = await run(part=f"1/2/1/run/{sha256}")

    assert state.is_cancelled()
    assert "no run is at work that waits for part 1 of 2, try 1" in state.message
    assert stored.requests_by_method == asked
