"""Integrations that are created: once each, with their signing secrets durable before anything else happens."""

import asyncio
from dataclasses import replace

import pytest

from jelou_rotation.errors import StoreUnavailable
from jelou_rotation.outcomes import Evidence, Outcome
from jelou_rotation.overlaps import Overlap
from jelou_rotation.pacing import Pace
from jelou_rotation.records import Step
from jelou_rotation.records.store import Store
from jelou_rotation.signing import SigningSecretRotation
from jelou_rotation.simulator import Fault, Switches
from tests.domain.world import (
    Full,
    Receiver,
    again,
    cancelled_during_the_post,
    generated,
    open_store,
    opened,
    record_of,
    row,
    run,
)

HOOK = "https://panel.example/hook"
WAY_OUT = "Make a new one: jelou-rotation signing-secrets "


@pytest.fixture
def hook(simulator):
    """The address of a receiver that waits for its first integration."""
    return simulator.expect("prj-1")


def by_reference(project_id="prj-1", **settings):
    return row(project_id, **{"webhookUrl": HOOK, "authType": "bearer", "authorization": "env:TOKEN"} | settings)


async def onboard(receiver, *rows, **options):
    return await run(receiver, *rows, create=True, **options)


def posts_lost(simulator, *, acted, kind="reset_after", project_id="prj-1"):
    kind = kind if acted else "reset_before"
    simulator.add_fault(Fault(kind=kind, acts=acted, method="POST", project_id=project_id, times=1))


# Created


@pytest.mark.parametrize("shape", ["flat", "envelope"])
async def test_an_integration_is_created_with_its_credential_and_its_signing_secret_is_kept(simulator, receiver, shape):
    simulator.switches = Switches(shape=shape)

    result = await onboard(receiver, by_reference())

    project, record = simulator.projects["prj-1"], await record_of()
    assert (result.outcome, result.evidence, result.attempts) == (Outcome.CREATED, Evidence.READ_BACK, 2)
    assert result.unconfirmed == (() if shape == "flat" else ("authType",))
    assert (project.webhook_url, project.auth_type, project.authorization) == (HOOK, "bearer", "canary-token")
    assert record.signing.value.get_secret_value() == project.signing_secret
    assert record.current.value.get_secret_value() == "canary-token"
    assert (record.step, record.signing_asked, record.holder) == (Step.IDLE, False, None)


@pytest.mark.parametrize("shape", ["flat", "envelope"])
async def test_a_generated_credential_is_accepted_by_the_receiver_before_jelou_gets_it(
    simulator, receiver, hook, shape
):
    simulator.switches = Switches(shape=shape)

    result = await onboard(receiver, generated(webhookUrl=hook))

    first, signed, last = receiver.documents
    assert (result.outcome, result.evidence) == (Outcome.CREATED, Evidence.RECEIVER_CHECKED)
    assert await simulator.deliver("prj-1")
    assert first["pending"]
    assert "signingSecret" not in first
    assert signed["signingSecret"] == last["signingSecret"] == simulator.projects["prj-1"].signing_secret
    assert last["current"]["value"] == simulator.projects["prj-1"].authorization


async def test_what_the_post_does_not_take_is_brought_by_the_patch(simulator, receiver):
    created = simulator.create
    simulator.create = lambda project_id, url, *_: created(project_id, url, "no_auth", None)

    await onboard(receiver, by_reference())

    project = simulator.projects["prj-1"]
    assert (project.auth_type, project.authorization) == ("bearer", "canary-token")


@pytest.mark.parametrize("settings", [{}, {"authType": "no_auth"}])
async def test_a_row_without_a_credential_is_created_too(simulator, receiver, settings):
    result = await onboard(receiver, row(webhookUrl=HOOK, **settings))

    assert (result.outcome, result.evidence) == (Outcome.CREATED, Evidence.READ_BACK)
    assert simulator.projects["prj-1"].auth_type == "no_auth"
    assert (await record_of()).signing.value.get_secret_value() == simulator.projects["prj-1"].signing_secret


async def test_a_plan_shows_what_would_be_created_and_writes_nothing(simulator, receiver, hook, tmp_path):
    result = await onboard(receiver, generated(webhookUrl=hook), plan_only=True)

    assert result.outcome is Outcome.PLANNED
    assert [(change.field, change.before) for change in result.changes] == [
        ("integration", "none"),
        ("webhookUrl", "none"),
        ("authType", "none"),
        ("authorization", "none"),
    ]
    assert simulator.requests_by_method == {"GET": 1}
    assert not (tmp_path / "records.db").exists()


async def test_an_existing_integration_is_brought_in_line_by_a_patch_and_one_in_line_is_left(simulator, receiver):
    old, same = simulator.add_project("prj-1", "https://old.example/"), simulator.add_project("prj-2", HOOK)
    secrets = old.signing_secret, same.signing_secret

    results = await onboard(receiver, by_reference(), row("prj-2", webhookUrl=HOOK))

    assert [result.outcome for result in results.values()] == [Outcome.ROTATED, Outcome.UNCHANGED]
    assert (old.webhook_url, old.authorization) == (HOOK, "canary-token")
    assert (old.signing_secret, same.signing_secret) == secrets
    assert simulator.requests_by_method["POST"] == 0
    assert (await record_of()).signing is None


async def test_without_the_order_a_missing_integration_is_missing(simulator, receiver):
    assert (await run(receiver, by_reference())).outcome is Outcome.MISSING
    assert simulator.requests_by_method == {"GET": 1}


async def test_a_row_without_an_address_is_blocked_and_creates_nothing(simulator, receiver):
    result = await onboard(receiver, row(authType="bearer", authorization="env:TOKEN"))

    assert (result.outcome, result.advice) == (Outcome.BLOCKED, "Give the row a webhookUrl, then run it again.")
    assert simulator.requests_by_method == {"GET": 1}


async def test_the_second_run_finds_everything_as_it_should_be(simulator, receiver):
    await onboard(receiver, by_reference())
    sent = simulator.requests_by_method.copy()

    assert (await onboard(receiver, by_reference())).outcome is Outcome.UNCHANGED
    assert simulator.requests_by_method - sent == {"GET": 1}


# Killed


class Killed(BaseException):
    """What a run dies of, that nothing here may catch."""


class Fatal(Receiver):
    """A receiver at whose first telling of a signing secret the run dies."""

    async def publish(self, target, document):
        await super().publish(target, document)
        if "signingSecret" in self.documents[-1]:
            raise Killed


ROWS = {
    "generate": lambda hook: generated(webhookUrl=hook),
    "reference": lambda hook: by_reference(webhookUrl=hook, publishTo="block:secret/prj-1"),
    "no credential": lambda hook: row(webhookUrl=hook, publishTo="block:secret/prj-1"),
}


@pytest.mark.parametrize("kind", ROWS)
async def test_a_run_that_died_right_after_the_post_is_finished_by_the_next_without_a_second_one(
    simulator, receiver, hook, kind
):
    chosen = ROWS[kind](hook)
    with pytest.raises(Killed):
        await onboard(Fatal(simulator), chosen)
    sent, kept = simulator.requests_by_method.copy(), await record_of()

    result = await onboard(receiver, chosen)

    secret = simulator.projects["prj-1"].signing_secret
    assert (sent["POST"], sent["PATCH"]) == (1, 0)
    assert kept.signing.value.get_secret_value() == receiver.documents[-1]["signingSecret"] == secret
    assert result.outcome is (Outcome.UNCHANGED if kind == "no credential" else Outcome.ROTATED)
    assert (await record_of()).handed_over
    assert simulator.made == {"prj-1": [secret]}


async def test_a_signing_secret_that_is_still_owed_to_the_receiver_is_part_of_the_plan(simulator, receiver, hook):
    chosen = ROWS["no credential"](hook)
    with pytest.raises(Killed):
        await onboard(Fatal(simulator), chosen)

    result = await onboard(receiver, chosen, plan_only=True)

    assert result.outcome is Outcome.PLANNED
    assert [(change.field, change.after) for change in result.changes] == [("publishTo", "block:secret/prj-1")]


async def test_a_block_that_cannot_be_written_after_the_post_stops_the_row_until_it_can(simulator, receiver, hook):
    chosen = ROWS["no credential"](hook)

    stopped = await onboard(Full(simulator), chosen)
    patches = simulator.requests_by_method["PATCH"]
    finished = await onboard(receiver, chosen)

    assert (stopped.outcome, patches) == (Outcome.UNKNOWN, 0)
    assert stopped.advice == "Mend the block, then run the row again."
    assert finished.outcome is Outcome.UNCHANGED
    assert receiver.documents[-1]["signingSecret"] == simulator.projects["prj-1"].signing_secret


async def test_close_overlaps_tells_the_receiver_too(simulator, receiver, hook):
    with pytest.raises(Killed):
        await onboard(Fatal(simulator), ROWS["no credential"](hook))

    async with opened(receiver, ROWS["no credential"](hook), kind=Overlap) as rotation:
        await rotation.apply(["prj-1"])

    assert receiver.documents[-1]["signingSecret"] == simulator.projects["prj-1"].signing_secret
    assert (await record_of()).handed_over


@pytest.mark.parametrize("times", [1, 3])
async def test_a_cancelled_run_waits_for_the_answer_and_keeps_the_secret(simulator, receiver, times):
    simulator.add_fault(Fault(kind="delay", delay_seconds=0.1, method="POST"))

    result = await cancelled_during_the_post(receiver, simulator, by_reference(), times=times, create=True)

    project, record = simulator.projects["prj-1"], await record_of()
    assert (result.outcome, result.error) == (Outcome.UNKNOWN, "the run ended before this row was verified")
    assert (record.signing.value.get_secret_value(), record.signing_asked) == (project.signing_secret, False)
    assert (await onboard(receiver, by_reference())).outcome is Outcome.ROTATED
    assert simulator.made == {"prj-1": [project.signing_secret]}


async def test_a_cancelled_run_whose_answer_is_lost_says_so_and_leaves_no_error_unheard(simulator, receiver):
    unheard = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: unheard.append(context))
    simulator.add_fault(Fault(kind="reset_after", delay_seconds=0.05, method="POST"))

    result = await cancelled_during_the_post(receiver, simulator, by_reference(), times=1, create=True)

    assert result.outcome is Outcome.UNKNOWN
    assert result.error.startswith("no readable answer from Jelou to POST")
    assert (await record_of()).signing_asked
    assert unheard == []


# The answer is lost


@pytest.mark.parametrize("kind", ["reset_after", "empty", "truncated", "html", "garbage", "status_zero", "status"])
async def test_an_answer_lost_after_jelou_acted_means_no_second_post_and_a_row_that_says_the_way_out(
    simulator, receiver, hook, kind
):
    simulator.receivers["prj-1"].accepts = {"canary-token"}
    chosen = by_reference(webhookUrl=hook, probe="required")
    posts_lost(simulator, acted=True, kind=kind)

    first = await onboard(receiver, chosen)
    project, record = simulator.projects["prj-1"], await record_of()
    second = await onboard(receiver, chosen)

    assert (first.outcome, first.evidence) == (Outcome.FAILED, Evidence.RECEIVER_CHECKED)
    assert "its answer with the signing secret was lost" in first.error
    assert WAY_OUT in first.advice
    assert (record.step, record.signing, record.signing_asked) == (Step.IDLE, None, True)
    assert len(project.patches) == 1
    assert (second.outcome, second.error, second.advice) == (Outcome.FAILED, first.error, first.advice)
    assert simulator.requests_by_method["POST"] == 1
    assert (await record_of()).failures == 0


async def test_a_lost_secret_is_told_until_a_new_one_is_made(simulator, receiver):
    posts_lost(simulator, acted=True)
    await onboard(receiver, by_reference())
    made = await run(receiver, by_reference(), kind=SigningSecretRotation)

    assert made.outcome is Outcome.ROTATED
    assert (await onboard(receiver, by_reference())).outcome is Outcome.UNCHANGED


async def test_a_lost_secret_is_told_also_when_the_row_has_something_to_send(simulator, receiver):
    posts_lost(simulator, acted=True)
    await onboard(receiver, by_reference())

    result = await onboard(receiver, by_reference(webhookUrl="https://new.example/"))

    assert "its answer with the signing secret was lost" in result.error
    assert simulator.projects["prj-1"].webhook_url == "https://new.example/"


async def test_an_answer_lost_before_jelou_acted_is_unknown_and_the_next_run_creates(simulator, receiver):
    posts_lost(simulator, acted=False)

    first = await onboard(receiver, by_reference())
    sent = simulator.requests_by_method["POST"]
    second = await onboard(receiver, by_reference())

    project, record = simulator.projects["prj-1"], await record_of()
    assert (first.outcome, sent) == (Outcome.UNKNOWN, 1)
    assert first.error == "the POST was not answered, and GET shows no integration yet"
    assert second.outcome is Outcome.CREATED
    assert (record.signing.value.get_secret_value(), record.signing_asked) == (project.signing_secret, False)
    assert simulator.made == {"prj-1": [project.signing_secret]}


async def test_what_get_shows_late_is_waited_for(simulator, receiver):
    posts_lost(simulator, acted=True)
    async with opened(receiver, by_reference(), create=True) as rotation:
        await rotation.plan(["prj-1"])
        await again(rotation, rotation.apply, ["prj-1"], tries=1)
        rotation._works["prj-1"].ended = None
        simulator.add_fault(Fault(kind="status", status=404, method="GET", times=2))
        await again(rotation, rotation.apply, ["prj-1"])

    assert "its answer with the signing secret was lost" in rotation.results()[0].error
    assert simulator.requests_by_method["POST"] == 1


@pytest.mark.parametrize("method", ["PATCH", "GET"])
async def test_an_integration_that_is_not_visible_right_after_its_post_is_waited_for(simulator, receiver, method):
    async with opened(receiver, by_reference(), create=True) as rotation:
        await rotation.plan(["prj-1"])
        post = rotation._tools.gateway.create

        async def create(*arguments):
            created = await post(*arguments)
            simulator.add_fault(Fault(kind="status", status=404, method=method, times=2))
            return created

        rotation._tools.gateway.create = create
        await again(rotation, rotation.apply, ["prj-1"])

    assert rotation.results()[0].outcome is Outcome.CREATED
    assert simulator.requests_by_method["POST"] == 1


async def test_one_that_never_becomes_visible_is_unknown_and_not_missing(simulator, receiver):
    simulator.add_fault(Fault(kind="status", status=404, method="PATCH"))

    result = await onboard(receiver, by_reference())

    assert (result.outcome, result.error) == (
        Outcome.UNKNOWN,
        "Jelou created the integration, and still answers that there is none",
    )


@pytest.mark.parametrize("kind", ["reset_after", "status", "status_zero"])
async def test_an_unclear_patch_after_the_post_is_sent_again_and_the_post_is_not(simulator, receiver, kind):
    simulator.add_fault(Fault(kind=kind, acts=True, method="PATCH", times=2))

    result = await onboard(receiver, by_reference())

    assert (result.outcome, result.attempts) == (Outcome.CREATED, 4)
    assert simulator.requests_by_method["POST"] == 1


async def test_an_answer_without_a_secret_is_a_lost_secret(simulator, receiver):
    async with opened(receiver, by_reference(), create=True) as rotation:
        await rotation.plan(["prj-1"])
        post = rotation._tools.gateway.create

        async def without_secret(*arguments):
            return replace(await post(*arguments), signing_secret=None)

        rotation._tools.gateway.create = without_secret
        await again(rotation, rotation.apply, ["prj-1"])
        (result,) = rotation.results()

    assert (result.outcome, result.evidence) == (Outcome.FAILED, Evidence.READ_BACK)
    assert "the signing secret was lost" in result.error
    assert simulator.projects["prj-1"].authorization == "canary-token"
    assert (await record_of()).signing_asked


async def test_a_store_that_fails_to_keep_the_secret_leaves_it_asked_for(simulator, receiver, monkeypatch):
    async def broken(*_arguments):
        raise StoreUnavailable("the record store failed")

    with monkeypatch.context() as patched:
        patched.setattr(Store, "keep_signing_secret", broken)
        first = await onboard(receiver, by_reference())
    second = await onboard(receiver, by_reference())

    assert (first.outcome, first.error) == (Outcome.UNKNOWN, "the record store failed")
    assert "the signing secret was lost" in second.error
    assert simulator.requests_by_method["POST"] == 1


async def test_a_store_that_cannot_note_the_question_means_no_post(simulator, receiver, monkeypatch):
    async def broken(*_arguments):
        raise StoreUnavailable("the record store failed")

    monkeypatch.setattr(Store, "ask_signing_secret", broken)

    assert (await onboard(receiver, by_reference())).outcome is Outcome.FAILED
    assert simulator.requests_by_method["POST"] == 0


async def test_the_question_is_durable_when_the_post_arrives(simulator, receiver):
    async with opened(receiver, by_reference(), create=True) as rotation:
        await rotation.plan(["prj-1"])
        post, seen = rotation._tools.gateway.create, []

        async def create(*arguments):
            seen.append((await record_of()).signing_asked)
            return await post(*arguments)

        rotation._tools.gateway.create = create
        await again(rotation, rotation.apply, ["prj-1"])

    assert seen == [True]


# Refused for certain


async def test_a_pause_is_waited_for_and_the_post_sent_again(simulator, receiver):
    simulator.add_fault(Fault(kind="status", status=429, retry_after="0", method="POST", times=1))

    assert (await onboard(receiver, by_reference())).outcome is Outcome.CREATED
    assert simulator.requests_by_method["POST"] == 2


async def test_after_a_pause_that_is_too_long_the_row_tries_again_and_nothing_is_in_doubt(simulator, receiver):
    simulator.add_fault(Fault(kind="status", status=429, retry_after="3600", method="POST", times=2))

    first = await onboard(receiver, by_reference(), tries=1)
    record = await record_of()
    second = await onboard(receiver, by_reference())

    assert (first.outcome, record.step, record.signing_asked) == (Outcome.FAILED, Step.STAGED, False)
    assert second.outcome is Outcome.CREATED


async def test_a_refused_connection_is_tried_again(simulator, receiver):
    async with opened(receiver, by_reference(), create=True) as rotation:
        await rotation.plan(["prj-1"])
        gateway = rotation._tools.gateway
        post, url = gateway.create, gateway._base_url

        async def create(*arguments):
            gateway.create, gateway._base_url = post, "http://127.0.0.1:1"
            try:
                return await post(*arguments)
            finally:
                gateway._base_url = url

        gateway.create = create
        await again(rotation, rotation.apply, ["prj-1"])

    assert rotation.results()[0].outcome is Outcome.CREATED


@pytest.mark.parametrize(
    ("status", "said"),
    [(404, "Jelou answered 404 to POST: there is no such project"), (422, "Jelou answered 422 to POST")],
)
async def test_a_refused_post_is_not_sent_again_and_leaves_nothing_in_doubt(simulator, receiver, status, said):
    simulator.add_fault(Fault(kind="status", status=status, method="POST", times=1))

    refused = await onboard(receiver, by_reference())
    record = await record_of()
    created = await onboard(receiver, by_reference())

    assert refused.outcome is Outcome.FAILED
    assert refused.error.startswith(said)
    assert (record.step, record.signing_asked, record.failures) == (Step.STAGED, False, 1)
    assert created.outcome is Outcome.CREATED


async def test_a_refused_post_does_not_forget_that_an_earlier_one_was_lost(simulator, receiver):
    posts_lost(simulator, acted=False)
    await onboard(receiver, by_reference())
    simulator.add_fault(Fault(kind="status", status=422, method="POST", times=1))

    await onboard(receiver, by_reference())

    assert (await record_of()).signing_asked


# Somebody else


async def test_what_somebody_else_created_since_the_plan_is_drifted_and_left_as_it_is(simulator, receiver):
    async with opened(receiver, by_reference(), create=True) as rotation:
        await rotation.plan(["prj-1"])
        theirs = simulator.add_project("prj-1", "https://theirs.example/")
        await again(rotation, rotation.apply, ["prj-1"])

    assert rotation.results()[0].outcome is Outcome.DRIFTED
    assert (theirs.webhook_url, theirs.received) == ("https://theirs.example/", [])
    assert simulator.requests_by_method["POST"] == 0
    assert (await record_of()).step is Step.IDLE


@pytest.mark.parametrize("second_create", ["409", "422"])
async def test_what_somebody_else_created_at_the_last_moment_is_refused_by_jelou_and_left(
    simulator, receiver, second_create
):
    simulator.switches = Switches(second_create=second_create)
    async with opened(receiver, by_reference(), create=True) as rotation:
        await rotation.plan(["prj-1"])
        post = rotation._tools.gateway.create

        async def create(*arguments):
            simulator.add_project("prj-1", "https://theirs.example/")
            return await post(*arguments)

        rotation._tools.gateway.create = create
        await again(rotation, rotation.apply, ["prj-1"])

    project, (result,) = simulator.projects["prj-1"], rotation.results()
    assert (result.outcome, result.error) == (
        Outcome.FAILED,
        f"Jelou answered {second_create} to POST" + (" (unprocessable_entity)" if second_create == "422" else ""),
    )
    assert (project.webhook_url, project.received) == ("https://theirs.example/", [])
    assert not (await record_of()).signing_asked


@pytest.mark.parametrize("second_create", ["overwrite", "409", "422"])
async def test_one_that_was_created_unheard_is_never_created_again_whatever_jelou_would_do(
    simulator, receiver, second_create
):
    simulator.switches = Switches(second_create=second_create, shape="mixed")
    posts_lost(simulator, acted=True)

    for _ in range(3):
        await onboard(receiver, by_reference())

    assert [len(made) for made in simulator.made.values()] == [1]
    assert simulator.requests_by_method["POST"] == 1


async def test_a_run_that_was_replaced_creates_nothing(simulator, receiver, monkeypatch):
    async with opened(receiver, by_reference(), create=True) as rotation:
        await rotation.plan(["prj-1"])
        turn = Pace.turn

        async def long_turn(pace):
            leaves = await turn(pace)
            if simulator.requests_by_method["GET"] > 1:
                rotation._works["prj-1"]._holds_until = 0.0
            return leaves

        monkeypatch.setattr(Pace, "turn", long_turn)
        await again(rotation, rotation.apply, ["prj-1"])

    assert "the lease ran out" in rotation.results()[0].error
    assert simulator.requests_by_method["POST"] == 0


# Many


async def test_two_hundred_projects_of_which_forty_answers_are_lost(simulator, receiver):
    # A second POST would go unnoticed, and replace a secret.
    simulator.switches = Switches(second_create="overwrite", shape="mixed")
    rows = [by_reference(f"prj-{number}") for number in range(200)]
    lost = {each.project_id for each in rows[::5]}
    for project_id in lost:
        posts_lost(simulator, acted=True, project_id=project_id)

    first = await onboard(receiver, *rows)
    second = await onboard(receiver, *rows)

    async with open_store() as store:
        records = await store.read(first)
    assert len(lost) == 40
    assert {key for key, result in first.items() if result.outcome is Outcome.FAILED} == lost
    assert all(result.outcome is Outcome.CREATED for key, result in first.items() if key not in lost)
    assert {key for key, result in second.items() if result.outcome is not Outcome.UNCHANGED} == lost
    for key, project in simulator.projects.items():
        assert simulator.made[key] == [project.signing_secret]
        assert project.authorization == "canary-token"
        if key in lost:
            assert all(WAY_OUT in results[key].advice for results in (first, second))
            assert records[key].signing is None
        else:
            assert records[key].signing.value.get_secret_value() == project.signing_secret
    assert simulator.requests_by_method["POST"] == len(simulator.made) == 200


async def test_no_result_shows_a_secret(simulator, receiver, hook):
    simulator.switches = Switches(authorization_in_get="echoed", error_body="echo")
    simulator.expect("prj-2")
    posts_lost(simulator, acted=True, project_id="prj-2")
    results = await onboard(receiver, by_reference(), by_reference("prj-2"))

    secrets = [*(secret for made in simulator.made.values() for secret in made), "canary", "demo-key"]
    assert not [secret for secret in secrets if secret in repr(results)]
