"""A new signing secret: kept before anything else, never asked for twice, and with the receiver in the end."""

import pytest

from jelou_rotation.errors import SigningSecretLost, StoreUnavailable
from jelou_rotation.outcomes import Evidence, Outcome
from jelou_rotation.overlaps import Overlap
from jelou_rotation.records.store import Store
from jelou_rotation.signing import SigningSecretRotation
from jelou_rotation.simulator import Fault, Switches
from tests.domain.world import (
    Full,
    Receiver,
    again,
    cancelled_during_the_post,
    generated,
    opened,
    record_of,
    row,
    run,
)


@pytest.fixture
def project(simulator):
    return simulator.add_project("prj-1")


async def renew(receiver, *rows, **options):
    return await run(receiver, *(rows or [generated()]), kind=SigningSecretRotation, **options)


def published(project_id="prj-1", **settings):
    """A row that manages no credential, whose receiver is told of the signing secret."""
    return row(project_id, webhookUrl="https://panel.example/hook", publishTo=f"block:secret/{project_id}", **settings)


async def kept():
    record = await record_of()
    return record.signing and record.signing.value.get_secret_value()


async def test_a_plan_says_whose_secret_would_die_and_asks_for_nothing(simulator, receiver, project):
    result = await renew(receiver, plan_only=True)

    assert result.outcome is Outcome.PLANNED
    assert [(change.field, change.after) for change in result.changes] == [
        ("signingSecret", "a new one, and the former one is dead at once")
    ]
    assert simulator.requests_by_method == {"GET": 1}


@pytest.mark.parametrize("shape", ["flat", "envelope"])
async def test_a_new_secret_is_kept_published_and_used_to_sign(simulator, receiver, project, shape):
    simulator.switches = Switches(shape=shape)
    former = project.signing_secret

    result = await renew(receiver)

    record = await record_of()
    assert (result.outcome, result.evidence, result.attempts) == (Outcome.ROTATED, Evidence.ACCEPTED, 1)
    assert await kept() == project.signing_secret != former
    assert (record.signing_asked, record.handed_over, record.holder) == (False, True, None)
    assert [document["signingSecret"] for document in receiver.documents] == [project.signing_secret]
    assert simulator.requests_by_method["POST"] == 1


async def test_it_is_asked_for_durably_kept_durably_and_only_then_published(simulator, project):
    seen = []

    class Curious(Receiver):
        async def publish(self, *_arguments):
            seen.append(await kept())

    async with opened(Curious(simulator), generated(), kind=SigningSecretRotation) as rotation:
        await rotation.plan(["prj-1"])
        post = rotation._tools.gateway.regenerate

        async def regenerate(*arguments):
            seen.append((await record_of()).signing_asked)
            return await post(*arguments)

        rotation._tools.gateway.regenerate = regenerate
        await rotation.apply(["prj-1"])

    assert seen == [True, project.signing_secret]


class Panel:
    """Answers probes as a receiver that checks the signature too; `signed` holds what they were signed with."""

    def __init__(self, rotation):
        self.signed = []
        self.ask = rotation._tools.prober.try_credential
        rotation._tools.prober.try_credential = self.try_credential

    async def try_credential(self, *arguments, signing_secret, **options):
        self.signed.append(signing_secret and signing_secret.get_secret_value())
        return await self.ask(*arguments, signing_secret=signing_secret, **options)


@pytest.mark.parametrize("settings", [{}, {"signingSecret": "env:TOKEN"}])
async def test_the_receiver_is_asked_with_the_new_secret_also_where_the_manifest_names_the_former(
    simulator, receiver, project, settings
):
    await run(receiver, generated())
    async with opened(receiver, generated(**settings), kind=SigningSecretRotation) as rotation:
        await rotation.plan(["prj-1"])
        panel = Panel(rotation)
        await rotation.apply(["prj-1"])
        (result,) = rotation.results()

    assert set(panel.signed) == {project.signing_secret}
    said = ("env:TOKEN holds the former signing secret: put the new one there",) if settings else ()
    assert (result.outcome, result.notes) == (Outcome.ROTATED, said)


async def test_the_next_rotation_signs_its_probes_with_the_recorded_secret(simulator, receiver, project):
    await renew(receiver)
    async with opened(receiver, generated()) as rotation:
        await rotation.plan(["prj-1"])
        panel = Panel(rotation)
        await rotation.apply(["prj-1"])

    assert set(panel.signed) == {project.signing_secret}


async def test_a_receiver_that_does_not_accept_it_yet_is_told_of(simulator, receiver, project):
    await run(receiver, generated())
    simulator.receivers["prj-1"].accepts.clear()

    class Deaf(Receiver):
        async def publish(self, *_arguments):
            pass

    result = await renew(Deaf(simulator))

    assert result.outcome is Outcome.ROTATED
    assert result.notes == ("the receiver does not accept the new signing secret yet: the receiver answered 401",)


@pytest.mark.parametrize("settings", [{"probe": "off"}, {}])
async def test_a_receiver_that_is_not_asked_is_said_not_to_be(simulator, receiver, project, settings):
    result = await renew(receiver, generated(**settings))

    assert result.notes == ("the receiver was not asked whether it knows the new signing secret",)


# The answer is lost


@pytest.mark.parametrize("acted", [True, False])
@pytest.mark.parametrize("kind", ["reset", "empty", "truncated", "html", "garbage", "status_zero", "status"])
async def test_a_lost_answer_is_not_asked_for_again_and_the_next_run_makes_a_new_one(
    simulator, receiver, project, kind, acted
):
    name = {True: "reset_after", False: "reset_before"}[acted] if kind == "reset" else kind
    simulator.add_fault(Fault(kind=name, acts=acted, method="POST", times=1))

    lost = await renew(receiver)
    posts, record = simulator.requests_by_method["POST"], await record_of()
    again_ = await renew(receiver)

    assert (lost.outcome, lost.advice) == (Outcome.FAILED, SigningSecretLost.advice)
    assert "its answer was lost; the former one may be dead" in lost.error
    assert (posts, record.signing, record.signing_asked, record.failures) == (1, None, True, 0)
    assert again_.outcome is Outcome.ROTATED
    assert await kept() == project.signing_secret
    assert not (await record_of()).signing_asked


async def test_an_answer_without_a_secret_is_a_lost_one(simulator, receiver, project):
    async with opened(receiver, generated(), kind=SigningSecretRotation) as rotation:
        await rotation.plan(["prj-1"])

        async def without_secret(*_arguments):
            return None

        rotation._tools.gateway.regenerate = without_secret
        await again(rotation, rotation.apply, ["prj-1"])
        (result,) = rotation.results()

    assert (result.outcome, result.advice) == (Outcome.FAILED, SigningSecretLost.advice)
    assert result.error == "Jelou made a new signing secret and did not tell it"
    assert (await record_of()).signing_asked
    assert not receiver.documents


async def test_a_store_that_fails_to_keep_the_secret_does_not_forget_that_it_was_asked_for(
    simulator, receiver, project, monkeypatch
):
    async def broken(*_arguments):
        raise StoreUnavailable("the record store failed")

    monkeypatch.setattr(Store, "keep_signing_secret", broken)

    result = await renew(receiver)

    assert (result.outcome, result.advice) == (Outcome.FAILED, SigningSecretLost.advice)
    assert "(the record store failed)" in result.error
    assert (await record_of()).signing_asked


# Refused for certain


async def test_a_pause_is_waited_for(simulator, receiver, project):
    simulator.add_fault(Fault(kind="status", status=429, retry_after="0", method="POST", times=1))

    assert (await renew(receiver)).outcome is Outcome.ROTATED
    assert simulator.requests_by_method["POST"] == 2


async def test_a_pause_that_is_too_long_leaves_nothing_in_doubt_and_is_tried_again(simulator, receiver, project):
    simulator.add_fault(Fault(kind="status", status=429, retry_after="3600", method="POST", times=3))

    failed = await renew(receiver, tries=1)
    asked = (await record_of()).signing_asked
    rotated = await renew(receiver, tries=3)

    assert (failed.outcome, asked) == (Outcome.FAILED, False)
    assert (rotated.outcome, rotated.attempts) == (Outcome.ROTATED, 3)


@pytest.mark.parametrize("status", [403, 404, 422])
async def test_a_refusal_makes_nothing_and_the_record_says_so(simulator, receiver, project, status):
    former = project.signing_secret
    simulator.add_fault(Fault(kind="status", status=status, method="POST"))

    result = await renew(receiver)

    assert result.outcome is (Outcome.MISSING if status == 404 else Outcome.FAILED)
    assert (project.signing_secret, (await record_of()).signing_asked) == (former, False)


async def test_a_refusal_does_not_forget_that_an_earlier_one_was_lost(simulator, receiver, project):
    simulator.add_fault(Fault(kind="reset_after", method="POST", times=1))
    await renew(receiver)
    simulator.add_fault(Fault(kind="status", status=422, method="POST"))

    await renew(receiver)

    assert (await record_of()).signing_asked


async def test_a_project_without_an_integration_is_missing(simulator, receiver):
    assert (await renew(receiver)).outcome is Outcome.MISSING
    assert simulator.requests_by_method == {"GET": 1}


async def test_a_project_that_another_run_holds_keeps_its_secret(simulator, receiver, project):
    async with opened(receiver, generated(), run_id="other") as other:
        await other._hold(list(other._works.values()))

        result = await renew(receiver, run_id="this")

    assert (result.outcome, result.error) == (Outcome.BLOCKED, "another run works on this project")
    assert simulator.requests_by_method["POST"] == 0


async def test_the_first_that_fails_stops_the_others(simulator, receiver, project):
    simulator.add_project("prj-2")
    simulator.add_fault(Fault(kind="reset_after", method="POST", project_id="prj-1"))

    results = await renew(receiver, generated(), generated("prj-2"), max_failures=0, concurrency=1)

    assert [result.outcome for result in results.values()] == [Outcome.FAILED, Outcome.NOT_STARTED]
    assert simulator.requests_by_method["POST"] == 1


# Killed


async def test_a_run_killed_between_keeping_and_publishing_is_made_good_by_close_overlaps(simulator, receiver, project):
    class Killed(BaseException):
        pass

    class Fatal(Receiver):
        async def publish(self, *_arguments):
            raise Killed

    with pytest.raises(Killed):
        await renew(Fatal(simulator), published())
    before, record = await kept(), await record_of()

    async with opened(receiver, published(), kind=Overlap) as rotation:
        await rotation.apply(["prj-1"])

    assert (before, record.handed_over) == (project.signing_secret, False)
    assert [document["signingSecret"] for document in receiver.documents] == [project.signing_secret]
    assert (await record_of()).handed_over
    assert simulator.requests_by_method["POST"] == 1


async def test_a_block_that_cannot_be_written_is_a_failure_with_the_way_out(simulator, receiver, project):
    result = await renew(Full(simulator), published())

    assert (result.outcome, result.evidence) == (Outcome.FAILED, Evidence.ACCEPTED)
    assert result.error == (
        "the new signing secret is in the record, and the receiver could not be told:"
        " publishTo block:secret/prj-1: cannot be written through Prefect"
    )
    assert "close-overlaps" in result.advice
    assert (await kept(), (await record_of()).failures) == (project.signing_secret, 0)


async def cancelled(receiver, simulator, fault):
    simulator.add_fault(fault)
    return await cancelled_during_the_post(receiver, simulator, published(), times=3, kind=SigningSecretRotation)


async def test_a_cancelled_run_waits_for_the_answer_keeps_it_publishes_it_and_says_so(simulator, receiver, project):
    result = await cancelled(receiver, simulator, Fault(kind="delay", delay_seconds=0.1, method="POST"))

    assert (result.outcome, result.evidence) == (Outcome.ROTATED, Evidence.ACCEPTED)
    assert await kept() == receiver.documents[-1]["signingSecret"] == project.signing_secret


async def test_a_cancelled_run_whose_answer_is_lost_says_so(simulator, receiver, project):
    result = await cancelled(receiver, simulator, Fault(kind="reset_after", delay_seconds=0.1, method="POST"))

    assert (result.outcome, result.advice) == (Outcome.FAILED, SigningSecretLost.advice)
    assert (await record_of()).signing_asked


async def test_no_result_shows_a_secret(simulator, receiver, project):
    simulator.switches = Switches(authorization_in_get="echoed", error_body="echo")
    results = [await renew(receiver)]
    secrets = [project.signing_secret]
    simulator.add_fault(Fault(kind="reset_after", method="POST"))
    results.append(await renew(receiver))

    assert not [secret for secret in [*secrets, project.signing_secret, "demo-key"] if secret in repr(results)]
