"""The life of a row, against a simulated Jelou over real sockets."""

import json
from datetime import timedelta

import pytest

from jelou_rotation.errors import Passing, UnresolvedReferences
from jelou_rotation.outcomes import Evidence, Outcome
from jelou_rotation.plan import same_address
from jelou_rotation.references import local_handlers
from jelou_rotation.rotation import open_rotation
from jelou_rotation.row import Row
from jelou_rotation.settings import Settings
from jelou_rotation.simulator import Fault, Simulator, Switches, running

NEW = "https://new.example/hook"


@pytest.fixture
def simulator(monkeypatch):
    simulator = Simulator()
    monkeypatch.setenv("JELOU_API_KEY", "demo-key")
    monkeypatch.setenv("JELOU_TIMEOUT_SECONDS", "5")
    monkeypatch.setenv("TOKEN", "canary-new")
    with running(simulator) as url:
        monkeypatch.setenv("JELOU_BASE_URL", f"{url}/platform/v1")
        simulator.add_project("prj_1", "https://old.example/hook", "bearer", "canary-old")
        yield simulator


def row(project_id="prj_1", **settings):
    return Row.model_validate({"projectId": project_id} | settings)


def credential(project_id="prj_1", **settings):
    return row(project_id, authType="bearer", authorization="env:TOKEN", **settings)


def opened(*rows, plan_only=False):
    return open_rotation(Settings.load(), rows, local_handlers(), plan_only=plan_only)


async def run(*rows, plan_only=False, tries=6):
    """What a flow does, without Prefect: each step again while it may pass."""
    async with opened(*rows, plan_only=plan_only) as rotation:
        await again(rotation.plan, [each.project_id for each in rows], tries)
        if not plan_only:
            await again(rotation.apply, rotation.to_apply(), tries)
        return {result.project_id: result for result in rotation.results()}, rotation


async def again(step, project_ids, tries):
    for _ in range(tries):
        try:
            return await step(project_ids)
        except Passing:
            pass
    return None


async def test_a_plan_shows_what_would_change_and_writes_nothing(simulator):
    results, _ = await run(credential(webhookUrl=NEW), plan_only=True)

    result = results["prj_1"]
    assert result.outcome is Outcome.PLANNED
    assert [(change.field, change.before, change.after) for change in result.changes] == [
        ("webhookUrl", "https://old.example/hook", NEW),
        ("authorization", None, "env:TOKEN"),
    ]
    assert [change.can_be_undone for change in result.changes] == [True, False]
    assert set(simulator.requests_by_method) == {"GET"}


async def test_a_rotated_credential_is_held_by_jelou_and_read_back(simulator):
    results, _ = await run(credential(webhookUrl=NEW))

    result, project = results["prj_1"], simulator.projects["prj_1"]
    assert (result.outcome, result.evidence, result.attempts) == (Outcome.ROTATED, Evidence.READ_BACK, 1)
    assert (project.webhook_url, project.auth_type, project.authorization) == (NEW, "bearer", "canary-new")


@pytest.mark.parametrize(
    ("settings", "sent"),
    [
        pytest.param({"webhookUrl": NEW}, {"webhookUrl": NEW}, id="address"),
        pytest.param({"authType": "no_auth"}, {"authType": "no_auth"}, id="no_auth"),
        pytest.param(
            {"authType": "api_key", "authorization": "env:TOKEN"},
            {"authType": "api_key", "authorization": "canary-new"},
            id="credential",
        ),
        pytest.param(
            {"webhookUrl": "https://old.example/hook", "authType": "bearer", "authorization": "env:TOKEN"},
            {"authType": "bearer", "authorization": "canary-new"},
            id="what is already so stays unsent",
        ),
    ],
)
async def test_only_what_the_row_changes_is_sent(simulator, settings, sent):
    await run(row(**settings))

    assert simulator.projects["prj_1"].received == [sent]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("https://panel.ñandu.example/", "https://panel.xn--andu-fqa.example"),
        ("https://x.example/?sala=méxico", "https://x.example/?sala=m%C3%A9xico"),
        ("https://X.example:443", "https://x.example/"),
    ],
)
def test_an_address_that_a_server_may_write_otherwise_is_the_same(one, other):
    assert same_address(one, other)


@pytest.mark.parametrize("url", ["https://old.example/hook", "https://OLD.example:443/hook"])
async def test_a_row_that_is_already_so_is_unchanged_and_sends_nothing(simulator, url):
    results, _ = await run(row(webhookUrl=url))

    assert results["prj_1"].outcome is Outcome.UNCHANGED
    assert set(simulator.requests_by_method) == {"GET"}


async def test_an_address_alone_is_updated_not_rotated(simulator):
    results, _ = await run(row(webhookUrl=NEW))

    assert results["prj_1"].outcome is Outcome.UPDATED


async def test_an_address_with_a_token_in_its_query_is_shown_without_it(simulator):
    simulator.projects["prj_1"].webhook_url = "https://old.example/hook?token=canary"
    results, _ = await run(row(webhookUrl=f"{NEW}?token=canary"), plan_only=True)

    (change,) = results["prj_1"].changes
    assert (change.before, change.after) == ("https://old.example/hook?…", f"{NEW}?…")


async def test_an_unknown_type_of_jelou_is_not_repeated(simulator):
    simulator.projects["prj_1"].auth_type = "canary"
    results, _ = await run(credential(), plan_only=True)

    assert results["prj_1"].changes[0].before == "an unknown type"


@pytest.mark.parametrize(
    "kind", ["reset_before", "reset_after", "empty", "truncated", "html", "garbage", "status_zero"]
)
@pytest.mark.parametrize("acts", [False, True])
async def test_an_unclear_answer_is_settled_with_the_same_value(simulator, kind, acts):
    simulator.add_fault(Fault(kind=kind, acts=acts, method="PATCH", times=2))
    results, rotation = await run(credential(webhookUrl=NEW))

    result, project = results["prj_1"], simulator.projects["prj_1"]
    assert (result.outcome, result.evidence, result.attempts) == (Outcome.ROTATED, Evidence.READ_BACK, 3)
    assert len(project.received) == 3
    assert {json.dumps(body) for body in project.received} == {json.dumps(project.received[0])}
    assert rotation.requests["retries"] == 2


@pytest.mark.parametrize("acts", [False, True])
@pytest.mark.parametrize("status", [500, 502, 503, 504])
async def test_server_trouble_is_settled_with_the_same_value(simulator, status, acts):
    simulator.add_fault(Fault(kind="status", status=status, acts=acts, method="PATCH", times=1))
    results, _ = await run(credential())

    assert (results["prj_1"].outcome, results["prj_1"].evidence) == (Outcome.ROTATED, Evidence.READ_BACK)
    assert simulator.projects["prj_1"].authorization == "canary-new"


async def test_a_slow_answer_that_never_comes_in_time_is_settled(simulator, monkeypatch):
    monkeypatch.setenv("JELOU_TIMEOUT_SECONDS", "0.1")
    simulator.add_fault(Fault(kind="delay", delay_seconds=0.3, method="PATCH", times=1))
    results, _ = await run(credential())

    assert (results["prj_1"].outcome, results["prj_1"].attempts) == (Outcome.ROTATED, 2)


async def test_a_row_whose_answers_stay_unclear_ends_unknown_not_failed(simulator):
    simulator.add_fault(Fault(kind="reset_after", method="PATCH"))
    results, _ = await run(credential(), tries=2)

    result = results["prj_1"]
    assert (result.outcome, result.evidence) == (Outcome.UNKNOWN, None)
    assert "the same value is sent" in result.advice


async def test_a_row_ends_failed_and_not_unknown_when_no_connection_was_ever_made(simulator, monkeypatch):
    async with opened(credential()) as rotation:
        await rotation.plan(["prj_1"])
        rotation._tools.gateway._base_url = "http://127.0.0.1:1"
        with pytest.raises(Passing):
            await rotation.apply(["prj_1"])

    assert rotation.results()[0].outcome is Outcome.FAILED
    assert rotation.results()[0].error == "no connection to Jelou for GET"


async def test_a_row_that_jelou_never_acted_on_ends_failed(simulator):
    simulator.add_fault(Fault(kind="status", status=429, retry_after="3600", method="PATCH"))
    results, _ = await run(credential(), tries=2)

    assert results["prj_1"].outcome is Outcome.FAILED


async def test_somebody_elses_write_while_we_were_in_doubt_is_drift_and_not_overwritten(simulator):
    async with open_rotation(
        Settings.load(), [credential(webhookUrl=NEW)], local_handlers(), plan_only=False
    ) as rotation:
        await rotation.plan(["prj_1"])
        simulator.add_fault(Fault(kind="reset_before", method="PATCH", times=1))
        with pytest.raises(Passing):
            await rotation.apply(["prj_1"])
        simulator.projects["prj_1"].webhook_url = "https://theirs.example/"
        await rotation.apply(["prj_1"])

    assert rotation.results()[0].outcome is Outcome.DRIFTED
    assert simulator.projects["prj_1"].webhook_url == "https://theirs.example/"


async def test_somebody_elses_write_after_ours_is_drift(simulator):
    async with open_rotation(
        Settings.load(), [credential(webhookUrl=NEW)], local_handlers(), plan_only=False
    ) as rotation:
        await rotation.plan(["prj_1"])
        simulator.switches = Switches(visible_after=1)
        with pytest.raises(Passing):
            await rotation.apply(["prj_1"])
        simulator.projects["prj_1"].webhook_url = "https://theirs.example/"
        await rotation.apply(["prj_1"])

    assert rotation.results()[0].outcome is Outcome.DRIFTED
    assert rotation.results()[0].evidence is Evidence.ECHOED


async def test_a_change_that_shows_late_is_waited_for_and_not_sent_again(simulator):
    simulator.switches = Switches(visible_after=2)
    results, _ = await run(credential(webhookUrl=NEW))

    assert (results["prj_1"].outcome, results["prj_1"].evidence) == (Outcome.ROTATED, Evidence.READ_BACK)
    assert len(simulator.projects["prj_1"].received) == 1


async def test_a_change_that_never_shows_ends_unknown(simulator):
    simulator.switches = Switches(visible_after=50)
    results, _ = await run(credential(webhookUrl=NEW), tries=3)

    result = results["prj_1"]
    assert (result.outcome, result.evidence) == (Outcome.UNKNOWN, Evidence.ECHOED)
    assert "still shows the former state" in result.error


@pytest.mark.parametrize("shape", ["flat", "envelope", "mixed"])
async def test_a_field_the_answer_leaves_out_is_not_confirmed_and_no_failure(simulator, shape):
    simulator.switches = Switches(shape=shape)
    results, _ = await run(row(authType="api_key", authorization="env:TOKEN"))

    result = results["prj_1"]
    assert (result.outcome, result.evidence) == (Outcome.ROTATED, Evidence.READ_BACK)
    if shape != "mixed":
        assert ("authType" in result.unconfirmed) is (shape == "envelope")


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        pytest.param(Fault(kind="status", status=400), Outcome.FAILED, id="400"),
        pytest.param(Fault(kind="status", status=403), Outcome.FAILED, id="403"),
        pytest.param(Fault(kind="status", status=404), Outcome.MISSING, id="404"),
        pytest.param(Fault(kind="status", status=409), Outcome.FAILED, id="409"),
        pytest.param(Fault(kind="status", status=422), Outcome.FAILED, id="422"),
        pytest.param(Fault(kind="redirect", status=307), Outcome.FAILED, id="redirect"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "PATCH"])
async def test_one_rows_trouble_is_not_tried_again_and_stops_no_other_row(simulator, fault, outcome, method):
    simulator.add_project("prj_2", "https://old.example/2")
    simulator.add_fault(fault.model_copy(update={"project_id": "prj_1", "method": method}))
    results, _ = await run(credential("prj_1"), credential("prj_2"))

    assert (results["prj_1"].outcome, results["prj_2"].outcome) == (outcome, Outcome.ROTATED)
    assert results["prj_1"].advice
    assert simulator.answers[str(fault.status)] + simulator.answers["redirect"] == 1


async def test_a_refused_shared_key_stops_the_run_and_leaves_the_rest_not_started(simulator, monkeypatch):
    monkeypatch.setenv("JELOU_CONCURRENCY", "1")
    for number in range(2, 6):
        simulator.add_project(f"prj_{number}", f"https://old.example/{number}")
    simulator.add_fault(Fault(kind="status", status=401, method="PATCH", project_id="prj_2"))
    results, rotation = await run(*(credential(f"prj_{number}") for number in range(1, 6)))

    assert [result.outcome for result in results.values()] == [
        Outcome.ROTATED,
        Outcome.FAILED,
        Outcome.NOT_STARTED,
        Outcome.NOT_STARTED,
        Outcome.NOT_STARTED,
    ]
    assert "JELOU_API_KEY" in results["prj_5"].advice
    assert simulator.requests_by_method["PATCH"] == 2
    assert [each.project_id for each in rotation.to_run_again()] == ["prj_2", "prj_3", "prj_4", "prj_5"]


async def test_a_refused_key_of_one_row_stops_only_that_row(simulator, monkeypatch):
    monkeypatch.setenv("JELOU_CONCURRENCY", "1")
    monkeypatch.setenv("OWN_KEY", "canary-wrong")
    simulator.add_project("prj_2", "https://old.example/2")
    results, _ = await run(credential("prj_1", apiKey="env:OWN_KEY"), credential("prj_2"))

    assert (results["prj_1"].outcome, results["prj_2"].outcome) == (Outcome.FAILED, Outcome.ROTATED)


async def test_every_missing_reference_is_named_before_anything_is_sent(simulator):
    rows = [
        row("prj_1", authType="bearer", authorization="env:ABSENT"),
        row("prj_2", webhookUrl=NEW, apiKey="file:/absent"),
    ]
    with pytest.raises(UnresolvedReferences) as caught:
        await run(*rows)

    assert [fault.where for fault in caught.value.faults] == ["env:ABSENT", "file:/absent"]
    assert not simulator.requests_by_method


@pytest.mark.parametrize(
    ("auth_type", "value"),
    [("bearer", "Bearer canary"), ("basic", "Basic canary"), ("bearer", "canary-ñ"), ("api_key", "canary“")],
)
async def test_a_value_jelou_could_not_present_is_refused_before_anything_is_sent(
    simulator, monkeypatch, auth_type, value
):
    monkeypatch.setenv("TOKEN", value)
    with pytest.raises(UnresolvedReferences) as caught:
        await run(row(authType=auth_type, authorization="env:TOKEN"))

    assert "authorization of prj_1" in str(caught.value)
    assert "canary" not in str(caught.value)
    assert not simulator.requests_by_method


async def test_basic_takes_a_password_outside_ascii(simulator, monkeypatch):
    monkeypatch.setenv("TOKEN", "user:contraseña")
    results, _ = await run(row(authType="basic", authorization="env:TOKEN"))

    assert results["prj_1"].outcome is Outcome.ROTATED
    assert simulator.projects["prj_1"].authorization == "user:contraseña"


async def test_jelou_delivers_with_the_new_credential_afterwards(simulator):
    simulator.add_project("prj_2", authorization="canary-old")
    simulator.receivers["prj_2"].accepts = {"canary-new"}
    assert not await simulator.deliver("prj_2")

    await run(credential("prj_2"))

    assert await simulator.deliver("prj_2")


async def test_a_get_from_before_our_patch_is_not_taken_for_proof(simulator):
    simulator.switches = Switches(visible_after=2)
    simulator.projects["prj_1"].updated_at -= timedelta(minutes=1)

    results, rotation = await run(credential())

    assert results["prj_1"].evidence is Evidence.READ_BACK
    assert rotation.requests["retries"] == 2


async def test_a_record_younger_than_our_patch_is_a_lower_claim(simulator):
    async with opened(credential()) as rotation:
        await rotation.plan(["prj_1"])
        get = rotation._tools.gateway.get

        async def touched_after_the_patch(*arguments):
            if simulator.requests_by_method["PATCH"]:
                simulator.projects["prj_1"].updated_at += timedelta(minutes=1)
            return await get(*arguments)

        rotation._tools.gateway.get = touched_after_the_patch
        await rotation.apply(["prj_1"])

    (result,) = rotation.results()
    assert (result.outcome, result.evidence, result.unconfirmed) == (Outcome.ROTATED, Evidence.ECHOED, ("updatedAt",))
