"""The audit: every kind of finding, and nothing written anywhere."""

from datetime import UTC, datetime, timedelta

import pytest
from pydantic import SecretStr
from sqlalchemy import select
from sqlalchemy.ext.asyncio import create_async_engine

from jelou_rotation.audit import Audit
from jelou_rotation.errors import SigningSecretLost
from jelou_rotation.outcomes import Evidence, Outcome
from jelou_rotation.probe import Answer, Verdict
from jelou_rotation.records import schema
from jelou_rotation.row import AuthType
from jelou_rotation.settings import Settings
from jelou_rotation.simulator import Fault, Switches
from tests.domain.world import again, generated, open_store, opened, record_of, row, run, set_record


@pytest.fixture
def project(simulator):
    return simulator.add_project("prj-1")


def by_reference(**settings):
    return row(**{"authType": "bearer", "authorization": "env:TOKEN"} | settings)


async def rotated(receiver, *rows, **settings):
    """A project that was rotated by the book; its overlap, if any, is still open."""
    await run(receiver, *(rows or [generated(**settings)]))


async def audit(receiver, *rows, **settings):
    return await run(receiver, *(rows or [generated(**settings)]), kind=Audit, plan_only=True)


async def stored():
    """Everything the store holds."""
    engine = create_async_engine(Settings.load().store_url.get_secret_value().replace("sqlite:", "sqlite+aiosqlite:"))
    async with engine.connect() as connection:
        tables = [(await connection.execute(select(table))).all() for table in schema.metadata.sorted_tables]
    await engine.dispose()
    return tables


async def test_what_is_as_declared_is_unchanged(simulator, receiver, project):
    await rotated(receiver, generated(rotateEvery="30d"))

    result = await audit(receiver, rotateEvery="30d")

    assert (result.outcome, result.evidence) == (Outcome.UNCHANGED, Evidence.RECEIVER_CHECKED)
    assert (result.error, result.advice, result.notes, result.unconfirmed, result.changes) == (None, None, (), (), ())


@pytest.mark.parametrize("shape", ["flat", "envelope"])
async def test_a_field_that_jelou_leaves_out_is_not_confirmed(simulator, receiver, project, shape):
    simulator.switches = Switches(shape=shape)
    await rotated(receiver)

    result = await audit(receiver)

    assert (result.outcome, result.unconfirmed) == (Outcome.UNCHANGED, () if shape == "flat" else ("authType",))


async def test_nothing_is_written_whatever_is_found(simulator, receiver, project):
    await rotated(receiver)
    await set_record(parked=True, signing_asked=True, step="staged")
    project.webhook_url = "https://theirs.example/"
    before, sent, told = await stored(), simulator.requests_by_method.copy(), len(receiver.documents)

    result = await audit(receiver)

    assert not result.outcome.is_as_wanted
    assert await stored() == before
    assert simulator.requests_by_method - sent == {"GET": 1}
    assert len(receiver.documents) == told


async def test_without_a_store_none_is_made(simulator, receiver, project, tmp_path):
    await audit(receiver)

    assert list(tmp_path.iterdir()) == []


async def test_a_project_without_an_integration_is_missing(simulator, receiver):
    assert (await audit(receiver)).outcome is Outcome.MISSING


async def test_an_outage_is_tried_again(simulator, receiver, project):
    await rotated(receiver)
    simulator.add_fault(Fault(kind="status", status=503, method="GET", times=2))

    assert (await audit(receiver)).outcome is Outcome.UNCHANGED


# Drift

BY_MANIFEST = "Jelou has another webhookUrl or authType than the manifest"
BY_RECORD = "somebody changed the integration since the last run here"


@pytest.mark.parametrize(
    "settings", [{"webhookUrl": "https://panel.example/"}, {"authType": "api_key", "authorization": "env:TOKEN"}]
)
async def test_jelou_has_another_address_or_type_than_the_manifest(simulator, receiver, project, settings, monkeypatch):
    monkeypatch.delenv("JELOU_STORE_KEY")

    result = await audit(receiver, row(**settings))

    assert (result.outcome, result.error, result.evidence) == (Outcome.DRIFTED, BY_MANIFEST, Evidence.READ_BACK)
    assert [change.field for change in result.changes] == (["webhookUrl"] if "webhookUrl" in settings else [])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("webhook_url", "https://theirs.example/"),
        ("auth_type", "api_key"),
        ("updated_at", datetime.now(UTC) + timedelta(minutes=5)),
    ],
)
async def test_somebody_changed_the_integration_since_the_last_run(simulator, receiver, project, name, value):
    await rotated(receiver, by_reference())
    setattr(project, name, value)

    result = await audit(receiver, by_reference())

    assert result.outcome is Outcome.DRIFTED
    assert BY_RECORD in result.error
    assert (BY_MANIFEST in result.error) is (name == "auth_type")


async def test_after_an_interrupted_run_a_change_is_its_own(simulator, receiver, project):
    await rotated(receiver)
    await set_record(step="sent")
    project.updated_at += timedelta(minutes=5)

    assert BY_RECORD not in (await audit(receiver)).error


async def test_a_change_by_hand_that_the_manifest_agrees_with_is_none_where_no_credential_is_ours(
    simulator, receiver, project
):
    await rotated(receiver, row(webhookUrl="https://panel.example/"))
    project.webhook_url = "https://new.example/"

    assert (await audit(receiver, row(webhookUrl="https://new.example/"))).outcome is Outcome.UNCHANGED


# Overdue


@pytest.mark.parametrize("has_store", [True, False])
async def test_a_credential_that_was_never_rotated_is_overdue(simulator, receiver, project, has_store):
    if has_store:
        async with open_store():
            pass

    result = await audit(receiver)

    assert (result.outcome, result.error) == (Outcome.OVERDUE, "no credential was ever rotated here")


async def test_without_a_record_a_reference_is_taken_as_it_is(simulator, receiver, project, monkeypatch):
    monkeypatch.delenv("JELOU_STORE_KEY")

    assert (await audit(receiver, by_reference())).outcome is Outcome.UNCHANGED


async def test_a_reference_that_holds_another_value_is_overdue(simulator, receiver, project, monkeypatch):
    await rotated(receiver, by_reference())
    same = await audit(receiver, by_reference())
    monkeypatch.setenv("TOKEN", "canary-newer")

    result = await audit(receiver, by_reference())

    assert same.outcome is Outcome.UNCHANGED
    assert (result.outcome, result.error) == (Outcome.OVERDUE, "env:TOKEN holds a credential Jelou does not have")
    assert "canary" not in repr(result)


@pytest.mark.parametrize(
    ("every", "age", "late"),
    [
        # A quarter of the time and a day are granted.
        ("20d", timedelta(days=25, hours=23), None),
        ("20d", timedelta(days=26, hours=1), "the rotation is 6 days late"),
        ("4h", timedelta(hours=28), None),
        ("4h", timedelta(hours=30), "the rotation is 1 day late"),
        (None, timedelta(days=900), None),
    ],
)
async def test_a_rotation_is_late_beyond_its_grace(simulator, receiver, project, every, age, late):
    await rotated(receiver)
    await set_record(current_made_at=datetime.now(UTC) - age)

    result = await audit(receiver, rotateEvery=every)

    assert (result.outcome, result.error) == (Outcome.OVERDUE if late else Outcome.UNCHANGED, late)


async def test_an_overlap_past_its_end_is_overdue_and_an_open_one_is_not(simulator, receiver, project):
    await rotated(receiver)
    await rotated(receiver, overlap="24h")
    still_open = await audit(receiver)
    await set_record(overlap_until=datetime(2026, 1, 2, 3, 4, tzinfo=UTC))

    result = await audit(receiver)

    assert still_open.outcome is Outcome.UNCHANGED
    assert result.outcome is Outcome.OVERDUE
    assert result.error == "the overlap ended 2026-01-02 03:04 UTC and the former credential is not retired"
    assert "close-overlaps" in result.advice


@pytest.mark.parametrize("step", ["staged", "sent", "rolling_back"])
async def test_an_interrupted_rotation_is_overdue(simulator, receiver, project, step):
    await rotated(receiver)
    await set_record(step=step)

    result = await audit(receiver)

    assert (result.outcome, result.error) == (
        Outcome.OVERDUE,
        "a rotation was interrupted and is not finished",
    )


async def test_a_rotation_that_another_run_is_at_is_not_called_interrupted(simulator, receiver, project):
    await rotated(receiver)
    async with open_store() as store:
        lease = (await store.take(["prj-1"], "another machine", "another run", 30))["prj-1"]
        await store.stage(lease, SecretStr("canary"), AuthType.BEARER)

        assert (await audit(receiver)).outcome is Outcome.UNCHANGED


# Failed


async def test_a_parked_project_failed_until_somebody_unparks_it(simulator, receiver, project):
    await rotated(receiver)
    await set_record(parked=True, failures=5)

    result = await audit(receiver)

    assert (result.outcome, result.error) == (Outcome.FAILED, "parked after 5 failures in a row")
    assert "jelou-rotation unpark prj-1" in result.advice


async def test_a_lost_signing_secret_failed(simulator, receiver, project):
    await rotated(receiver)
    await set_record(signing_asked=True)

    result = await audit(receiver)

    assert (result.outcome, result.advice) == (Outcome.FAILED, SigningSecretLost.advice)


async def test_a_receiver_that_does_not_check_failed(simulator, receiver, project):
    await rotated(receiver)
    simulator.receivers["prj-1"].checks = False

    result = await audit(receiver)

    assert (result.outcome, result.evidence) == (Outcome.FAILED, Evidence.READ_BACK)
    assert result.error == "the receiver does not check: it accepts a random credential"


async def test_a_receiver_that_refuses_the_credential_jelou_was_given_failed(simulator, receiver, project):
    await rotated(receiver)
    simulator.receivers["prj-1"].accepts.clear()

    result = await audit(receiver)

    assert (result.outcome, result.evidence) == (Outcome.FAILED, Evidence.READ_BACK)
    assert result.error.startswith("the receiver refuses the credential Jelou was given (the receiver answered 401")


async def test_a_receiver_that_cannot_be_asked_is_a_note_and_no_proof(simulator, receiver, project):
    await rotated(receiver)
    dead = generated(webhookUrl="http://127.0.0.1:1/gone")
    project.webhook_url = "http://127.0.0.1:1/gone"

    result = await audit(receiver, dead)

    assert result.evidence is Evidence.READ_BACK
    assert "the receiver could not be checked: no connection to the receiver" in result.notes


async def test_a_receiver_that_did_not_refuse_a_random_credential_is_no_proof(simulator, receiver, project):
    await rotated(receiver)
    async with opened(receiver, generated(), kind=Audit, plan_only=True) as rotation:

        async def checks(*_arguments, **_options):
            return Verdict(Answer.INCONCLUSIVE, "the receiver answered 503", 503)

        rotation._tools.prober.checks = checks
        await again(rotation, rotation.plan, ["prj-1"])

    (result,) = rotation.results()
    assert (result.outcome, result.evidence) == (Outcome.UNCHANGED, Evidence.READ_BACK)


@pytest.mark.parametrize(
    "settings", [{"probe": "off"}, {"authType": "no_auth", "authorization": None, "probe": "required"}]
)
async def test_a_receiver_that_has_no_credential_of_ours_to_refuse_is_not_asked(simulator, receiver, project, settings):
    await rotated(receiver)
    if "authType" in settings:
        await run(receiver, row(authType="no_auth"))
    simulator.receivers["prj-1"].accepts.clear()
    asked = simulator.receivers["prj-1"].deliveries.total()

    assert (await audit(receiver, **settings)).outcome is Outcome.UNCHANGED
    assert simulator.receivers["prj-1"].deliveries.total() == asked


# Several at once


async def test_the_gravest_finding_decides_and_all_are_told(simulator, receiver, project):
    await rotated(receiver, generated(rotateEvery="1d"))
    await set_record(parked=True, failures=5, current_made_at=datetime.now(UTC) - timedelta(days=30))
    chosen = generated(rotateEvery="1d")
    both = await audit(receiver, chosen)
    project.auth_type = "api_key"

    all_three = await audit(receiver, chosen)

    assert both.outcome is Outcome.FAILED
    assert both.error == "parked after 5 failures in a row; the rotation is 29 days late"
    assert both.advice.count("jelou-rotation") == 2
    assert all_three.outcome is Outcome.DRIFTED
    assert all_three.error == f"{BY_MANIFEST}; {BY_RECORD}; {both.error}"


async def test_one_finding_stops_no_other_row_and_counts(simulator, receiver, project):
    simulator.add_project("prj-2")
    async with opened(receiver, generated(), generated("prj-2"), kind=Audit, plan_only=True) as rotation:
        problems = await rotation.plan(["prj-1", "prj-2"])

    assert [problem.outcome for problem in problems] == [Outcome.OVERDUE] * 2
    assert rotation.failures == 2
    assert await record_of() is None
