"""The life of a credential made here, against a simulated Jelou, real receivers and a real store."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import SecretStr
from sqlalchemy import update
from sqlalchemy.ext.asyncio import create_async_engine

from jelou_rotation.errors import NoAnswer, Passing, SettingsError, StoreError, StoreUnavailable
from jelou_rotation.gateway import Integration
from jelou_rotation.outcomes import Evidence, Outcome
from jelou_rotation.overlaps import Overlap
from jelou_rotation.pacing import Pace
from jelou_rotation.probe import Answer, Verdict
from jelou_rotation.records import Step, new_key
from jelou_rotation.records.schema import records
from jelou_rotation.records.store import Store
from jelou_rotation.references import local_handlers
from jelou_rotation.rotation import open_rotation
from jelou_rotation.row import AuthType, Row
from jelou_rotation.settings import Settings
from jelou_rotation.simulator import Fault, Simulator, running
from jelou_rotation.work import Orders, document

KEY = new_key()


class Receiver:
    """The customer's side: accepts what the hand-over document says, as the real ones shall."""

    def __init__(self, simulator):
        self.simulator = simulator
        self.documents = []
        self.is_listening = True

    async def publish(self, target, document):
        content = json.loads(document)
        self.documents.append(content)
        if self.is_listening:
            slots = (content[slot] for slot in ("current", "pending", "previous"))
            receiver = self.simulator.receivers[target.partition("/")[2]]
            # Without a current one the first rotation is under way: what was accepted so far stays accepted.
            kept = set() if content["current"] else receiver.accepts
            receiver.accepts = {slot["value"] for slot in slots if slot} | kept


@pytest.fixture
def simulator(monkeypatch, tmp_path):
    simulator = Simulator()
    monkeypatch.setenv("JELOU_API_KEY", "demo-key")
    monkeypatch.setenv("JELOU_ALLOW_PRIVATE_HOSTS", "true")
    monkeypatch.setenv("JELOU_STORE_URL", f"sqlite:///{tmp_path}/records.db")
    monkeypatch.setenv("JELOU_STORE_KEY", KEY)
    with running(simulator) as url:
        monkeypatch.setenv("JELOU_BASE_URL", f"{url}/platform/v1")
        simulator.add_project("prj-1")
        yield simulator


@pytest.fixture
def receiver(simulator):
    return Receiver(simulator)


def generated(project_id="prj-1", **settings):
    given = {"projectId": project_id, "authType": "bearer", "authorization": "generate", "minimumAge": "0"}
    given |= {"publishTo": f"block:secret/{project_id}"} | settings
    return Row.model_validate(given, context={"allow_private_hosts": True})


async def run(receiver, *rows, tries=6, plan_only=False, **orders):
    """What a flow does, without Prefect."""
    handlers = local_handlers()
    opened = open_rotation(
        Settings.load(), rows, handlers, plan_only=plan_only, publish=receiver.publish, orders=Orders(**orders)
    )
    async with opened as rotation:
        await again(rotation.plan, [row.project_id for row in rows], tries)
        if not plan_only:
            await again(rotation.apply, rotation.to_apply(), tries)
        results = {result.project_id: result for result in rotation.results()}
    return results[rows[0].project_id] if len(rows) == 1 else results


async def again(step, project_ids, tries):
    for _ in range(tries):
        try:
            return await step(project_ids)
        except Passing:
            pass
    return None


async def record_of(project_id="prj-1"):
    settings = Settings.load()
    async with Store.open(settings.store_url.get_secret_value(), SecretStr(KEY)) as store:
        return (await store.read([project_id])).get(project_id)


async def test_a_credential_is_made_kept_proven_given_and_promoted(simulator, receiver):
    result = await run(receiver, generated())

    record, project = await record_of(), simulator.projects["prj-1"]
    assert (result.outcome, result.evidence) == (Outcome.ROTATED, Evidence.RECEIVER_CHECKED)
    assert record.step is Step.IDLE
    assert project.authorization == record.current.value.get_secret_value()
    assert len(project.authorization) == 43
    assert await simulator.deliver("prj-1")
    assert record.holder is None


async def test_the_receiver_is_told_before_it_is_asked_and_again_when_the_credential_is_in_use(simulator, receiver):
    await run(receiver, generated())
    first = simulator.projects["prj-1"].authorization
    await run(receiver, generated())
    second = simulator.projects["prj-1"].authorization

    stages = [
        tuple(document[slot] and document[slot]["value"] for slot in ("current", "pending", "previous"))
        for document in receiver.documents
    ]
    assert first != second
    assert stages[:2] == [(None, first, None), (first, None, None)]


async def test_a_plan_makes_no_credential_and_writes_not_even_a_store(simulator, receiver, tmp_path):
    result = await run(receiver, generated(), plan_only=True)

    assert result.outcome is Outcome.PLANNED
    assert [(change.field, change.can_be_undone) for change in result.changes] == [("authorization", False)]
    assert not (tmp_path / "records.db").exists()
    assert not receiver.documents
    assert set(simulator.requests_by_method) == {"GET"}


async def test_a_plan_says_which_rows_could_be_rolled_back(simulator, receiver):
    await run(receiver, generated(overlap="0"))
    result = await run(receiver, generated(), plan_only=True)

    assert [(change.field, change.can_be_undone) for change in result.changes] == [("authorization", True)]


async def test_no_patch_when_the_receiver_does_not_accept_the_new_credential(simulator, receiver):
    receiver.is_listening = False

    result = await run(receiver, generated())

    assert result.outcome is Outcome.BLOCKED
    assert "the receiver does not accept the new credential yet" in result.error
    assert simulator.requests_by_method["PATCH"] == 0
    assert (await record_of()).step is Step.STAGED


async def test_a_blocked_row_goes_on_with_the_same_value_once_the_receiver_is_ready(simulator, receiver):
    receiver.is_listening = False
    await run(receiver, generated())
    staged = (await record_of()).pending.value
    receiver.is_listening = True

    result = await run(receiver, generated())

    assert result.outcome is Outcome.ROTATED
    assert simulator.projects["prj-1"].authorization == staged.get_secret_value()


@pytest.mark.parametrize(
    ("probe", "outcome"), [("required", Outcome.BLOCKED), ("best_effort", Outcome.ROTATED), ("off", Outcome.ROTATED)]
)
async def test_a_receiver_that_cannot_be_reached_blocks_only_where_the_probe_is_required(
    simulator, receiver, probe, outcome
):
    simulator.projects["prj-1"].webhook_url = "http://127.0.0.1:1/gone"

    result = await run(receiver, generated(probe=probe))

    assert result.outcome is outcome
    assert result.evidence is (None if outcome is Outcome.BLOCKED else Evidence.READ_BACK)


async def test_a_receiver_that_checks_nothing_is_said_to_check_nothing(simulator, receiver):
    simulator.receivers["prj-1"].checks = False

    result = await run(receiver, generated())

    assert (result.outcome, result.evidence) == (Outcome.ROTATED, Evidence.READ_BACK)
    assert "the receiver does not check: it accepts a random credential" in result.notes


async def test_a_store_that_cannot_be_written_means_no_request(simulator, receiver, monkeypatch, tmp_path):
    monkeypatch.setenv("JELOU_STORE_URL", f"sqlite:///{tmp_path}/absent/records.db")

    with pytest.raises(StoreError):
        await run(receiver, generated())

    assert not simulator.requests_by_method


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="generate"),
        pytest.param({"authorization": "env:TOKEN"}, id="publishTo"),
        pytest.param({"authorization": "env:TOKEN", "publishTo": None, "overlap": "24h"}, id="overlap"),
    ],
)
async def test_what_must_be_kept_is_refused_without_a_store_key(simulator, receiver, monkeypatch, settings):
    monkeypatch.delenv("JELOU_STORE_KEY")
    monkeypatch.setenv("TOKEN", "from-outside")

    with pytest.raises(SettingsError, match="JELOU_STORE_KEY: missing"):
        await run(receiver, generated(**settings))

    assert not simulator.requests_by_method


async def test_a_store_that_fails_while_staging_means_no_patch(simulator, receiver, monkeypatch):
    async def broken(*_arguments, **_options):
        raise StoreUnavailable("the record store failed")

    monkeypatch.setattr(Store, "stage", broken)

    result = await run(receiver, generated())

    assert result.outcome is Outcome.FAILED
    assert simulator.requests_by_method["PATCH"] == 0


async def test_a_row_that_is_not_due_costs_no_request(simulator, receiver):
    await run(receiver, generated())
    requests = simulator.requests_by_method.total()

    result = await run(receiver, generated(rotateEvery="30d"))

    assert result.outcome is Outcome.NOT_DUE
    assert simulator.requests_by_method.total() == requests


async def test_a_changed_address_is_sent_although_the_credential_is_not_due(simulator, receiver):
    await run(receiver, generated())

    result = await run(receiver, generated(rotateEvery="30d", webhookUrl="https://new.example/hook"))

    assert result.outcome is Outcome.UPDATED
    assert simulator.projects["prj-1"].received[-1] == {"webhookUrl": "https://new.example/hook"}


async def test_a_second_rotation_inside_an_open_overlap_is_refused_unless_ended_by_name(simulator, receiver):
    await run(receiver, generated(overlap="0"))
    await run(receiver, generated())
    blocked = await run(receiver, generated())
    allowed = await run(receiver, generated(), end_overlap=frozenset({"prj-1"}))

    assert blocked.outcome is Outcome.BLOCKED
    assert "the overlap of the last rotation is open until" in blocked.error
    assert blocked.overlap_until > datetime.now(UTC) + timedelta(hours=23)
    assert allowed.outcome is Outcome.ROTATED


async def test_a_leaked_credential_is_replaced_at_once_and_proven_dead(simulator, receiver):
    await run(receiver, generated(rotateEvery="30d"))
    leaked = simulator.projects["prj-1"].authorization

    result = await run(receiver, generated(rotateEvery="30d"), leaked=True)

    assert (result.outcome, result.evidence) == (Outcome.ROTATED, Evidence.OLD_REFUSED)
    assert leaked not in simulator.receivers["prj-1"].accepts
    assert (await record_of()).previous is None


async def test_a_receiver_that_keeps_the_leaked_credential_is_reported(simulator, receiver):
    await run(receiver, generated())
    leaked = simulator.projects["prj-1"].authorization
    receiver.simulator.receivers["prj-1"].accepts = frozenset({leaked})

    class Hoarder(Receiver):
        async def publish(self, target, document):
            await super().publish(target, document)
            self.simulator.receivers["prj-1"].accepts |= {leaked}

    result = await run(Hoarder(simulator), generated(), leaked=True)

    assert result.outcome is Outcome.FAILED
    assert "the leaked credential was replaced; old_still_accepted" in result.error
    assert (await record_of()).previous.value.get_secret_value() == leaked


async def test_a_credential_the_receiver_refuses_after_the_patch_is_rolled_back(simulator, receiver):
    await run(receiver, generated(overlap="0"))
    former = simulator.projects["prj-1"].authorization
    forget_after_patch(simulator, receiver, keep={former})

    result = await run(receiver, generated())

    record = await record_of()
    assert result.outcome is Outcome.FAILED
    assert "the former one was put back and read back" in result.error
    assert simulator.projects["prj-1"].authorization == former
    assert (record.step, record.current.value.get_secret_value()) == (Step.IDLE, former)


async def test_without_a_known_former_credential_the_report_says_what_is_needed(simulator, receiver):
    forget_after_patch(simulator, receiver, keep={"old"})

    result = await run(receiver, generated())

    assert result.outcome is Outcome.FAILED
    assert "the former one is not known here" in result.error
    assert "credential show" in result.advice
    assert (await record_of()).step is Step.SENT


def forget_after_patch(simulator, receiver, keep):
    """The receiver loses what it was told in the moment Jelou takes the new credential."""
    project = simulator.projects["prj-1"]

    class Patches(list):
        def append(self, body):
            simulator.receivers["prj-1"].accepts = set(keep)
            receiver.is_listening = False
            super().append(body)

    project.patches = Patches(project.patches)


async def test_a_change_by_somebody_else_since_the_plan_is_drift_and_nothing_is_sent(simulator, receiver):
    async with open_rotation(
        Settings.load(), [generated()], local_handlers(), plan_only=False, publish=receiver.publish
    ) as rotation:
        await rotation.plan(["prj-1"])
        simulator.projects["prj-1"].webhook_url = "https://theirs.example/"
        await rotation.apply(["prj-1"])

    assert rotation.results()[0].outcome is Outcome.DRIFTED
    assert simulator.requests_by_method["PATCH"] == 0


async def test_drift_is_overwritten_only_where_it_was_ordered_by_name(simulator, receiver):
    orders = Orders(overwrite_drift=frozenset({"prj-1"}))
    async with open_rotation(
        Settings.load(), [generated()], local_handlers(), plan_only=False, publish=receiver.publish, orders=orders
    ) as rotation:
        await rotation.plan(["prj-1"])
        simulator.projects["prj-1"].updated_at += timedelta(seconds=5)
        await rotation.apply(["prj-1"])

    assert rotation.results()[0].outcome is Outcome.ROTATED
    assert "somebody else's change was overwritten, as ordered" in rotation.results()[0].notes


async def test_the_same_manifest_of_references_writes_nothing_the_second_time(simulator, receiver, monkeypatch):
    monkeypatch.setenv("TOKEN", "from-outside")
    simulator.add_project("prj-2")
    rows = [
        Row.model_validate({"projectId": each, "authType": "bearer", "authorization": "env:TOKEN"})
        for each in ("prj-1", "prj-2")
    ]
    first = await run(receiver, *rows)
    second = await run(receiver, *rows)
    monkeypatch.setenv("TOKEN", "another")
    third = await run(receiver, *rows)

    assert {each.outcome for each in first.values()} == {Outcome.ROTATED}
    assert {each.outcome for each in second.values()} == {Outcome.UNCHANGED}
    assert {each.outcome for each in third.values()} == {Outcome.ROTATED}
    assert simulator.requests_by_method["PATCH"] == 4


async def test_a_reference_is_sent_again_when_somebody_else_wrote_meanwhile(simulator, receiver, monkeypatch):
    monkeypatch.setenv("TOKEN", "from-outside")
    row = Row.model_validate({"projectId": "prj-1", "authType": "bearer", "authorization": "env:TOKEN"})
    await run(receiver, row)
    simulator.projects["prj-1"].updated_at += timedelta(seconds=5)

    assert (await run(receiver, row)).outcome is Outcome.ROTATED


async def test_repeated_failure_parks_a_row_until_a_person_unparks_it(simulator, receiver):
    receiver.is_listening = False
    for _ in range(5):
        await run(receiver, generated())
    parked = await run(receiver, generated())
    async with Store.open(Settings.load().store_url.get_secret_value(), SecretStr(KEY)) as store:
        await store.unpark("prj-1", "a test")
    receiver.is_listening = True

    assert "parked after 5 failures" in parked.error
    assert "unpark prj-1" in parked.advice
    assert (await run(receiver, generated())).outcome is Outcome.ROTATED


@pytest.mark.parametrize("kind", ["reset_before", "reset_after", "status_zero", "garbage"])
async def test_an_unclear_answer_is_settled_with_the_one_generated_value(simulator, receiver, kind):
    simulator.add_fault(Fault(kind=kind, method="PATCH", times=2))

    result = await run(receiver, generated())

    assert result.outcome is Outcome.ROTATED
    assert len({body["authorization"] for body in simulator.projects["prj-1"].received}) == 1


async def interrupted(simulator, receiver, *, sent):
    """A run that died with a pending credential in the record, its lease over."""
    settings = Settings.load()
    async with Store.open(settings.store_url.get_secret_value(), SecretStr(KEY)) as store:
        leases = await store.take(["prj-1"], "a dead run", "", 60)
        lease = leases["prj-1"]
        await store.observe(lease, Integration(simulator.projects["prj-1"].webhook_url, "bearer"))
        record = await store.stage(lease, SecretStr("pending-value"), AuthType.BEARER)
        if sent:
            record = await store.mark_sent(lease)
        await store.release(leases)
    await receiver.publish("secret/prj-1", document(record))
    simulator.receivers["prj-1"].accepts |= {"old"}


async def test_pending_and_not_sent_goes_on_with_the_same_value(simulator, receiver):
    await interrupted(simulator, receiver, sent=False)

    assert (await run(receiver, generated())).outcome is Outcome.ROTATED
    assert [body["authorization"] for body in simulator.projects["prj-1"].received] == ["pending-value"]


async def test_sent_and_jelou_as_before_sends_the_same_value_again(simulator, receiver):
    await interrupted(simulator, receiver, sent=True)

    assert (await run(receiver, generated())).outcome is Outcome.ROTATED
    assert [body["authorization"] for body in simulator.projects["prj-1"].received] == ["pending-value"]


async def test_sent_and_jelou_has_ours_sends_the_same_value_once_more_and_verifies(simulator, receiver):
    new = f"{simulator.receiver_url('prj-1')}?moved"
    await interrupted(simulator, receiver, sent=True)
    project = simulator.projects["prj-1"]
    project.webhook_url, project.authorization = new, "pending-value"

    result = await run(receiver, generated(webhookUrl=new))

    assert (result.outcome, result.evidence) == (Outcome.ROTATED, Evidence.RECEIVER_CHECKED)
    assert [body["authorization"] for body in project.received] == ["pending-value"]


async def test_sent_and_jelou_has_something_else_is_drift_and_held(simulator, receiver):
    await interrupted(simulator, receiver, sent=True)
    simulator.projects["prj-1"].webhook_url = "https://theirs.example/"

    assert (await run(receiver, generated())).outcome is Outcome.DRIFTED
    assert not simulator.projects["prj-1"].received


async def test_promoted_is_only_looked_at_and_not_written_again(simulator, receiver, monkeypatch):
    monkeypatch.setenv("TOKEN", "from-outside")
    row = Row.model_validate({"projectId": "prj-1", "authType": "bearer", "authorization": "env:TOKEN"})
    await run(receiver, row)
    simulator.requests_by_method.clear()

    result = await run(receiver, row)

    assert (result.outcome, result.evidence) == (Outcome.UNCHANGED, Evidence.READ_BACK)
    assert simulator.requests_by_method == {"GET": 1}


async def test_a_run_that_was_replaced_sends_no_patch(simulator, receiver):
    async with open_rotation(
        Settings.load(), [generated()], local_handlers(), plan_only=False, publish=receiver.publish
    ) as rotation:
        await rotation.plan(["prj-1"])

        async def taken_over(*_arguments, **_options):
            await steal("prj-1")
            return Verdict(Answer.ACCEPTED, "as ordered", 200)

        rotation._tools.prober.try_credential = taken_over
        await rotation.apply(["prj-1"])

    assert rotation.results()[0].outcome is Outcome.FAILED
    assert "another run has taken over" in rotation.results()[0].error
    assert simulator.requests_by_method["PATCH"] == 0


async def steal(project_id):
    """What another machine does once the lease of this one is over."""
    later = datetime.now(UTC) + timedelta(minutes=5)
    async with Store.open(Settings.load().store_url.get_secret_value(), SecretStr(KEY), now=lambda: later) as store:
        assert project_id in await store.take([project_id], "another machine", "another run", 30)


async def test_a_project_that_another_run_holds_is_blocked_and_not_touched(simulator, receiver):
    await steal("prj-1")

    result = await run(receiver, generated(), tries=2)

    assert (result.outcome, result.error) == (Outcome.BLOCKED, "another run works on this project")
    assert simulator.requests_by_method["PATCH"] == 0
    assert not receiver.documents


async def close(receiver, *rows):
    async with open_rotation(
        Settings.load(), rows, local_handlers(), plan_only=False, publish=receiver.publish, kind=Overlap
    ) as rotation:
        await rotation.apply([row.project_id for row in rows])
        return rotation.results()[0]


async def test_an_overlap_is_closed_when_it_is_over_and_the_former_credential_is_dead(simulator, receiver):
    await run(receiver, generated())
    former = simulator.projects["prj-1"].authorization
    await run(receiver, generated(overlap="24h"))
    still_open = await close(receiver, generated())
    accepted = former in simulator.receivers["prj-1"].accepts
    await end_overlap_now()

    closed = await close(receiver, generated())

    assert (still_open.outcome, accepted) == (Outcome.UNCHANGED, True)
    assert still_open.overlap_until is not None
    assert (closed.outcome, closed.evidence) == (Outcome.UPDATED, Evidence.OLD_REFUSED)
    assert (await record_of()).previous is None


async def test_an_overlap_that_is_over_is_reported_until_the_former_credential_is_dead(simulator, receiver):
    await run(receiver, generated())
    await run(receiver, generated(overlap="24h"))
    await end_overlap_now()
    receiver.is_listening = False

    result = await close(receiver, generated())

    assert result.outcome is Outcome.FAILED
    assert "old_still_accepted" in result.error
    assert (await record_of()).previous is not None


async def end_overlap_now():
    engine = create_async_engine(Settings.load().store_url.get_secret_value().replace("sqlite:", "sqlite+aiosqlite:"))
    async with engine.begin() as connection:
        await connection.execute(update(records).values(overlap_until=datetime.now(UTC) - timedelta(seconds=1)))
    await engine.dispose()


async def test_what_the_receiver_should_accept_shrinks_to_one_credential_in_the_end(simulator, receiver):
    await run(receiver, generated())
    await run(receiver, generated(overlap="24h"))
    during = receiver.documents[-1]
    await end_overlap_now()
    await close(receiver, generated())
    after = receiver.documents[-1]

    assert [bool(during[slot]) for slot in ("current", "pending", "previous")] == [True, False, True]
    assert [bool(after[slot]) for slot in ("current", "pending", "previous")] == [True, False, False]


async def test_no_result_shows_a_credential(simulator, receiver):
    results = [await run(receiver, generated()) for _ in range(2)]
    values = {body["authorization"] for body in simulator.projects["prj-1"].received}

    assert not any(value in repr(results) for value in values)


async def test_a_leaked_credential_behind_a_reference_must_be_replaced_there_first(simulator, receiver, monkeypatch):
    monkeypatch.setenv("TOKEN", "from-outside")
    row = Row.model_validate({"projectId": "prj-1", "authType": "bearer", "authorization": "env:TOKEN"})
    await run(receiver, row)

    result = await run(receiver, row, leaked=True)

    assert (result.outcome, result.error) == (Outcome.BLOCKED, "env:TOKEN still holds the credential that leaked")


async def test_the_same_value_sent_once_more_replaces_nothing(simulator, receiver, monkeypatch):
    monkeypatch.setenv("TOKEN", "from-outside")
    given = {"projectId": "prj-1", "authType": "bearer", "authorization": "env:TOKEN", "overlap": "24h"}
    await run(receiver, Row.model_validate(given))
    simulator.projects["prj-1"].updated_at += timedelta(seconds=5)

    await run(receiver, Row.model_validate(given))

    record = await record_of()
    assert (record.current.value.get_secret_value(), record.previous) == ("from-outside", None)


async def test_a_hand_over_that_fails_after_the_promotion_is_a_note_and_no_failure(simulator, receiver):
    class Late(Receiver):
        async def publish(self, target, document):
            if json.loads(document)["current"]:
                raise LookupError("cannot be written through Prefect")
            await super().publish(target, document)

    result = await run(Late(simulator), generated())

    assert (result.outcome, result.evidence) == (Outcome.ROTATED, Evidence.RECEIVER_CHECKED)
    assert any("could not be told of the promotion" in note for note in result.notes)


async def test_an_outage_of_jelou_parks_nobody(simulator, receiver):
    simulator.add_fault(Fault(kind="status", status=503, method="PATCH"))
    for _ in range(6):
        await run(receiver, generated(), tries=1)

    record = await record_of()
    assert (record.failures, record.parked, record.holder) == (0, False, None)


async def test_a_rollback_that_was_interrupted_is_finished_by_the_next_run(simulator, receiver):
    await run(receiver, generated(overlap="0"))
    former = simulator.projects["prj-1"].authorization
    forget_after_patch(simulator, receiver, keep={former})

    async with open_rotation(
        Settings.load(), [generated()], local_handlers(), plan_only=False, publish=receiver.publish
    ) as rotation:
        await rotation.plan(["prj-1"])
        patch = rotation._tools.gateway.patch

        async def fails_the_second_time(*arguments):
            rotation._tools.gateway.patch = broken
            return await patch(*arguments)

        async def broken(*_arguments):
            raise NoAnswer("no readable answer")

        rotation._tools.gateway.patch = fails_the_second_time
        with pytest.raises(Passing):
            await rotation.apply(["prj-1"])
    step = (await record_of()).step

    result = await run(receiver, generated())

    assert step is Step.ROLLING_BACK
    assert "the former one was put back and read back" in result.error
    assert simulator.projects["prj-1"].authorization == former
    assert (await record_of()).step is Step.IDLE


async def test_a_receiver_that_forgets_while_nobody_knows_what_jelou_has_gets_the_former_credential_back(
    simulator, receiver
):
    await run(receiver, generated(overlap="0"))
    former = simulator.projects["prj-1"].authorization
    simulator.add_fault(Fault(kind="reset_after", method="PATCH", times=1))
    forget_after_patch(simulator, receiver, keep={former})

    result = await run(receiver, generated())

    assert "the former one was put back and read back" in result.error
    assert await simulator.deliver("prj-1")


async def test_a_blocked_row_that_jelou_may_have_already_is_unknown(simulator, receiver):
    await interrupted(simulator, receiver, sent=True)

    async def broken(*_arguments):
        raise LookupError("cannot be written through Prefect")

    receiver.publish = broken

    assert (await run(receiver, generated())).outcome is Outcome.UNKNOWN


@pytest.mark.parametrize("authorization", ["generate", "env:TOKEN"])
async def test_a_changed_auth_type_is_sent_with_the_credential(simulator, receiver, monkeypatch, authorization):
    monkeypatch.setenv("TOKEN", "from-outside")
    given = {"authorization": authorization, "rotateEvery": "30d", "probe": "off"}
    await run(receiver, generated(**given))

    result = await run(receiver, generated(**given, authType="api_key"))

    assert result.outcome is Outcome.ROTATED
    assert simulator.projects["prj-1"].auth_type == "api_key"
    assert (await record_of()).current.auth_type is AuthType.API_KEY


async def test_a_change_by_somebody_else_is_not_taken_for_ours_when_the_run_ends_before_staging(
    simulator, receiver, monkeypatch
):
    monkeypatch.setenv("TOKEN", "from-outside")
    row = Row.model_validate({"projectId": "prj-1", "authType": "bearer", "authorization": "env:TOKEN"})
    await run(receiver, row)
    project = simulator.projects["prj-1"]
    project.authorization, project.updated_at = "theirs", project.updated_at + timedelta(seconds=5)
    with monkeypatch.context() as broken:

        async def stage(*_arguments, **_options):
            raise StoreUnavailable("the record store failed")

        broken.setattr(Store, "stage", stage)
        assert (await run(receiver, row)).outcome is Outcome.FAILED

    assert (await run(receiver, row)).outcome is Outcome.ROTATED
    assert project.authorization == "from-outside"


async def test_a_value_that_jelou_refused_for_certain_may_be_replaced_by_another(simulator, receiver, monkeypatch):
    monkeypatch.setenv("TOKEN", "bad-value")
    row = Row.model_validate({"projectId": "prj-1", "authType": "bearer", "authorization": "env:TOKEN"})
    simulator.add_fault(Fault(kind="status", status=400, method="PATCH", times=1))
    await run(receiver, row)
    monkeypatch.setenv("TOKEN", "good-value")

    result = await run(receiver, row)

    assert result.outcome is Outcome.ROTATED
    assert [body["authorization"] for body in simulator.projects["prj-1"].received] == ["bad-value", "good-value"]


async def test_an_interrupted_value_is_finished_before_another_one_and_the_row_says_so(
    simulator, receiver, monkeypatch
):
    await interrupted(simulator, receiver, sent=True)
    monkeypatch.setenv("TOKEN", "newer-value")

    first = await run(receiver, generated(authorization="env:TOKEN"))
    second = await run(receiver, generated(authorization="env:TOKEN"))

    assert (first.outcome, second.outcome) == (Outcome.BLOCKED, Outcome.ROTATED)
    sent = [body["authorization"] for body in simulator.projects["prj-1"].received]
    assert sent == ["pending-value", "newer-value"]


async def test_a_first_rotation_of_a_leaked_credential_tells_the_receiver_to_forget_it(simulator, receiver):
    result = await run(receiver, generated(), leaked=True)

    assert result.outcome is Outcome.ROTATED
    assert receiver.documents[-1]["current"]
    assert "old" not in simulator.receivers["prj-1"].accepts


async def test_a_leak_is_not_forgotten_when_the_run_that_was_told_of_it_dies(simulator, receiver):
    await run(receiver, generated())
    simulator.add_fault(Fault(kind="status", status=503, method="PATCH", times=1))
    await run(receiver, generated(), tries=1, leaked=True)

    result = await run(receiver, generated())

    assert (result.outcome, result.evidence) == (Outcome.ROTATED, Evidence.OLD_REFUSED)


async def test_a_staged_value_that_may_have_leaked_is_not_used(simulator, receiver):
    await interrupted(simulator, receiver, sent=False)

    await run(receiver, generated(), leaked=True)

    assert "pending-value" not in [body["authorization"] for body in simulator.projects["prj-1"].received]


@pytest.mark.parametrize("sent", [False, True])
async def test_a_pending_value_is_never_sent_under_another_auth_type(simulator, receiver, sent):
    await interrupted(simulator, receiver, sent=sent)

    result = await run(receiver, generated(authType="api_key"))

    sent_as = {(body["authType"], body["authorization"]) for body in simulator.projects["prj-1"].received}
    assert ("api_key", "pending-value") not in sent_as
    assert result.outcome is (Outcome.UNKNOWN if sent else Outcome.ROTATED)


async def test_an_ordered_overwrite_puts_the_address_back_too(simulator, receiver):
    orders = Orders(overwrite_drift=frozenset({"prj-1"}))
    async with open_rotation(
        Settings.load(), [generated()], local_handlers(), plan_only=False, publish=receiver.publish, orders=orders
    ) as rotation:
        await rotation.plan(["prj-1"])
        wanted = simulator.projects["prj-1"].webhook_url
        rotation._works["prj-1"].row = generated(webhookUrl=wanted)
        simulator.projects["prj-1"].webhook_url = "https://theirs.example/"
        await rotation.apply(["prj-1"])

    assert rotation.results()[0].outcome is Outcome.ROTATED
    assert simulator.projects["prj-1"].webhook_url == wanted


async def test_one_spoiled_record_stops_only_its_own_row(simulator, receiver):
    simulator.add_project("prj-2")
    rows = [generated("prj-1"), generated("prj-2")]
    await run(receiver, *rows)
    await spoil("prj-1")

    results = await run(receiver, *rows)

    assert [result.outcome for result in results.values()] == [Outcome.FAILED, Outcome.ROTATED]
    assert "does not decrypt" in results["prj-1"].error


async def spoil(project_id):
    engine = create_async_engine(Settings.load().store_url.get_secret_value().replace("sqlite:", "sqlite+aiosqlite:"))
    async with engine.begin() as connection:
        chosen = update(records).where(records.c.project_id == project_id)
        await connection.execute(chosen.values(current_value="spoiled"))
    await engine.dispose()


async def test_a_plan_that_another_run_made_old_is_made_again_also_when_that_fails_once(simulator, receiver):
    async with open_rotation(
        Settings.load(), [generated()], local_handlers(), plan_only=False, publish=receiver.publish
    ) as rotation:
        await rotation.plan(["prj-1"])
        await run(receiver, generated())
        simulator.add_fault(Fault(kind="status", status=503, method="GET", times=1))
        await again(rotation.apply, ["prj-1"], 3)

    assert rotation.results()[0].outcome is not Outcome.DRIFTED


async def test_a_patch_does_not_leave_when_the_lease_ran_out_while_it_waited(simulator, receiver, monkeypatch):
    async with open_rotation(
        Settings.load(), [generated()], local_handlers(), plan_only=False, publish=receiver.publish
    ) as rotation:
        await rotation.plan(["prj-1"])
        turn = Pace.turn

        async def long_turn(pace):
            leaves = await turn(pace)
            if simulator.requests_by_method["GET"] > 1:
                rotation._works["prj-1"]._holds_until = 0.0
            return leaves

        monkeypatch.setattr(Pace, "turn", long_turn)
        await rotation.apply(["prj-1"])

    assert "ran out before the PATCH could leave" in rotation.results()[0].error
    assert simulator.requests_by_method["PATCH"] == 0


async def test_a_receiver_that_missed_the_promotion_is_told_by_close_overlaps(simulator, receiver):
    class Late(Receiver):
        async def publish(self, target, document):
            if json.loads(document)["current"]:
                raise LookupError("cannot be written through Prefect")
            await super().publish(target, document)

    await run(Late(simulator), generated())

    await close(receiver, generated())

    assert receiver.documents[-1]["current"]["value"] == simulator.projects["prj-1"].authorization


async def test_an_outage_of_the_block_store_parks_nobody(simulator, receiver):
    async def broken(*_arguments):
        raise LookupError("cannot be written through Prefect")

    receiver.publish = broken
    for _ in range(6):
        assert (await run(receiver, generated())).outcome is Outcome.BLOCKED

    assert not (await record_of()).parked


async def test_a_former_credential_that_nobody_retired_is_looked_at_before_it_makes_room(simulator, receiver):
    await run(receiver, generated())
    await run(receiver, generated(overlap="24h"))
    former = (await record_of()).previous.value.get_secret_value()
    await end_overlap_now()
    receiver.is_listening = False
    simulator.receivers["prj-1"].accepts |= {former}

    result = await run(receiver, generated(probe="best_effort"))

    assert any("the credential before the last one makes room: old_still_accepted" in note for note in result.notes)


async def test_a_former_credential_that_was_not_accepted_before_is_not_put_back(simulator, receiver):
    await run(receiver, generated(overlap="0"))
    former = simulator.projects["prj-1"].authorization

    class Forgetful(Receiver):
        async def publish(self, target, document):
            await super().publish(target, document)
            self.simulator.receivers["prj-1"].accepts -= {former}

    forgetful = Forgetful(simulator)
    forget_after_patch(simulator, forgetful, keep=set())

    result = await run(forgetful, generated())

    assert "did not accept the former one before either" in result.error
    assert simulator.requests_by_method["PATCH"] == 2


async def test_a_store_that_fails_at_the_promotion_leaves_the_row_unknown_and_the_next_run_finishes_it(
    simulator, receiver, monkeypatch
):
    with monkeypatch.context() as broken:

        async def promote(*_arguments):
            raise StoreUnavailable("the record store failed")

        broken.setattr(Store, "promote", promote)
        assert (await run(receiver, generated())).outcome is Outcome.UNKNOWN

    assert (await run(receiver, generated())).outcome is Outcome.ROTATED
    assert len({body["authorization"] for body in simulator.projects["prj-1"].received}) == 1


async def test_proof_about_the_former_credential_is_none_about_a_row_that_is_then_blocked(simulator, receiver):
    await run(receiver, generated())
    await run(receiver, generated(overlap="24h"))
    await end_overlap_now()

    class Full(Receiver):
        async def publish(self, target, document):
            if json.loads(document)["pending"]:
                raise LookupError("cannot be written through Prefect")
            await super().publish(target, document)

    result = await run(Full(simulator), generated())

    assert (result.outcome, result.evidence) == (Outcome.BLOCKED, None)
    assert (await record_of()).previous is None


async def test_an_ordered_overwrite_of_what_is_already_as_wanted_sends_nothing(simulator, receiver):
    new = "https://new.example/hook"
    row = Row.model_validate({"projectId": "prj-1", "webhookUrl": new})
    orders = Orders(overwrite_drift=frozenset({"prj-1"}))
    async with open_rotation(Settings.load(), [row], local_handlers(), plan_only=False, orders=orders) as rotation:
        await rotation.plan(["prj-1"])
        simulator.projects["prj-1"].webhook_url = new
        await rotation.apply(["prj-1"])

    (result,) = rotation.results()
    assert (result.outcome, result.evidence) == (Outcome.UNCHANGED, Evidence.READ_BACK)
    assert simulator.requests_by_method["PATCH"] == 0
