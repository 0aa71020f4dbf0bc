"""How much a run may do unasked, in which steps, and when it stops."""

import pytest
from pydantic import TypeAdapter, ValidationError

from jelou_rotation.errors import LimitExceeded, SettingsError
from jelou_rotation.gateway import Integration
from jelou_rotation.limits import Amount, Limits, RampStep, allowed, ramp_steps
from jelou_rotation.outcomes import Outcome
from jelou_rotation.plan import plan_row
from jelou_rotation.simulator import Fault
from tests.domain.world import again, generated, opened, row, run

HERE = "https://panel.example/hook"

# The form and the code


def in_form(kind, text):
    try:
        TypeAdapter(kind).validate_python(text)
    except ValidationError:
        return False
    return True


def in_code(make):
    try:
        make()
    except SettingsError:
        return False
    return True


AMOUNTS = ["", "0", "1", "999999", "0%", "10%", "100%"]
NO_AMOUNTS = ["1000000", "101%", "-1", "1.5", "10 %", " 1", "1\n", "%", "rest", "tag:a", "ten"]


@pytest.mark.parametrize(
    ("text", "fits"), [*((text, True) for text in AMOUNTS), *((text, False) for text in NO_AMOUNTS)]
)
def test_the_form_and_the_code_take_the_same_amounts(text, fits):
    assert in_form(Amount, text) is in_code(lambda: Limits(max_changes=text)) is fits


STEPS = ["1", "0", "10%", "100%", "tag:pilot", "tag:a%b", "rest"]
NO_STEPS = ["", "tag:", "tag:a b", "101%", "all", "Rest", "1 ", "-1"]


@pytest.mark.parametrize(("text", "fits"), [*((text, True) for text in STEPS), *((text, False) for text in NO_STEPS)])
def test_the_form_and_the_code_take_the_same_steps_of_a_ramp(text, fits):
    assert in_form(RampStep, text) is in_code(lambda: ramp_steps([text], ["a"], lambda _: ("a",))) is fits


def test_every_wrong_limit_is_named_at_once_and_not_quoted():
    with pytest.raises(SettingsError) as caught:
        Limits(max_changes="canary", max_host_changes="5", max_downgrades="canary", max_failures="canary")

    assert [fault.where for fault in caught.value.faults] == ["max_changes", "max_downgrades", "max_failures"]
    assert "expected a number or a percentage" in str(caught.value)
    assert "canary" not in str(caught.value)


def test_every_wrong_step_of_a_ramp_is_named_by_its_number():
    with pytest.raises(SettingsError) as caught:
        ramp_steps(["1", "ten", "rest", "tag:"], ["a"], lambda _: ())

    assert [fault.where for fault in caught.value.faults] == ["ramp step 2", "ramp step 4"]


@pytest.mark.parametrize(
    ("amount", "total", "most"),
    [("", 10, None), ("0", 10, 0), ("40", 10, 40), ("10%", 25, 2), ("10%", 9, 0), ("99%", 101, 99), ("100%", 7, 7)],
)
def test_a_share_is_rounded_down_and_nothing_is_no_limit(amount, total, most):
    assert allowed(amount, total) == Limits(max_failures=amount).failures_allowed(total) == most


# The limits of a plan


def planned(seen=None, *, rotates=False, knows_former=False, creates=False, **settings):
    wanted = row(**settings)
    return plan_row(wanted, seen or Integration(), rotates=rotates, knows_former=knows_former, creates=creates)


def moved(number=1):
    return [planned(Integration("https://old.example/hook"), webhookUrl=HERE)] * number


def downgraded(number=1):
    return [planned(Integration(HERE, "bearer"), authType="no_auth")] * number


def refusal(plans, total=100, failures=0, **limits):
    """The lines of the refusal; none when the plan is within the limits."""
    try:
        Limits(**limits).check(plans, total, failures)
    except LimitExceeded as refused:
        return str(refused).split("\n  ")[1:]
    return []


def test_a_plan_within_the_limits_passes_and_one_above_is_refused():
    assert not refusal(moved(3), max_changes="3")
    assert refusal(moved(3), max_changes="2") == [
        (
            "max_changes: 3 of 100 projects would change, the limit is 2."
            " To allow it once: max_changes=3 in the form, --max-changes 3 in a terminal"
        ),
    ]


def test_every_limit_that_is_exceeded_is_told_with_its_numbers_and_the_way_to_allow_it_once():
    plans = [*moved(15), *downgraded(2)]

    assert refusal(plans, total=1600, failures=1200, max_changes="1%", max_failures="5%") == [
        (
            "max_changes: 17 of 1,600 projects would change, 1% allows 16."
            " To allow it once: max_changes=17 in the form, --max-changes 17 in a terminal"
        ),
        (
            "max_host_changes: 15 of 1,600 projects would be delivered to another host, the limit is 10."
            " To allow it once: max_host_changes=15 in the form, --max-host-changes 15 in a terminal"
        ),
        (
            "max_downgrades: 2 of 1,600 projects would lose their authentication, the limit is 0."
            " To allow it once: max_downgrades=2 in the form, --max-downgrades 2 in a terminal"
        ),
        (
            "max_failures: 1,200 of 1,600 projects could not be planned, 5% allows 80."
            " To allow it once: max_failures=1200 in the form, --max-failures 1200 in a terminal"
        ),
    ]


def test_what_the_refusal_says_allows_it():
    plans = [*moved(15), *downgraded(2)]
    said = dict(line.partition("once: ")[2].split(" in the form")[0].split("=") for line in refusal(plans))

    assert not refusal(plans, **said)


@pytest.mark.parametrize("limit", ["max_changes", "max_host_changes", "max_downgrades", "max_failures"])
def test_an_empty_limit_is_none(limit):
    empty = {"max_host_changes": "", "max_downgrades": ""}

    assert not refusal([*moved(50), *downgraded(50)], failures=50, **empty)
    assert refusal([*moved(50), *downgraded(50)], failures=50, **empty | {limit: "49"})


@pytest.mark.parametrize(
    ("before", "after", "counts"),
    [
        ("https://a.example/hook", "https://b.example/hook", True),
        ("https://a.example/hook", "https://sub.a.example/hook", True),
        (None, HERE, True),
        ("https://[broken/", HERE, True),
        ("https://a.example/hook", "https://a.example/other?x=1", False),
        ("https://A.example:443/hook", "https://a.example:8443/hook", False),
        ("https://panel.xn--andu-fqa.example/", "https://panel.ñandu.example/other", False),
    ],
)
def test_another_host_is_a_host_change_and_another_path_is_none(before, after, counts):
    plan = planned(Integration(before), webhookUrl=after)

    assert plan.sends == ("webhookUrl",)
    assert bool(refusal([plan], max_host_changes="0")) is counts


@pytest.mark.parametrize(
    ("told", "knows_former", "counts"),
    [
        pytest.param("bearer", False, True, id="Jelou tells it"),
        pytest.param("a new type", False, True, id="Jelou tells one we do not know"),
        pytest.param(None, True, True, id="our record has a credential"),
        pytest.param(None, False, False, id="nothing is known"),
    ],
)
def test_a_downgrade_is_the_loss_of_an_authentication_that_is_known(told, knows_former, counts):
    plan = planned(Integration(HERE, told), knows_former=knows_former, authType="no_auth")

    assert plan.sends == ("authType",)
    assert bool(refusal([plan])) is counts


def test_an_upgrade_and_another_kind_of_authentication_are_no_downgrade():
    plans = [
        planned(Integration(HERE, told), rotates=True, knows_former=True, authType="bearer", authorization="env:TOKEN")
        for told in ("no_auth", "api_key", None)
    ]

    assert not refusal(plans)


def test_a_new_integration_is_a_change_but_neither_a_host_change_nor_a_downgrade():
    plans = [planned(creates=True, knows_former=True, webhookUrl=HERE, authType="no_auth")] * 20

    assert not refusal(plans)
    assert len(refusal(plans, max_changes="19")) == 1


# The steps of a ramp

TAGS = {"pilot": {"b", "d", "elsewhere"}, "empty": set()}


@pytest.mark.parametrize(
    ("ramp", "steps"),
    [
        ([], ["abcdefghij"]),
        (["rest"], ["abcdefghij"]),
        (["1", "30%", "rest"], ["a", "bcd", "efghij"]),
        (["1", "30%"], ["a", "bcd", "efghij"]),
        (["15%", "rest"], ["a", "bcdefghij"]),
        (["1%", "rest"], ["a", "bcdefghij"]),
        (["100%", "rest"], ["abcdefghij"]),
        (["8", "50%"], ["abcdefgh", "ij"]),
        (["99"], ["abcdefghij"]),
        (["tag:pilot", "rest"], ["bd", "acefghij"]),
        (["2", "tag:pilot", "rest"], ["ab", "d", "cefghij"]),
        (["tag:pilot", "tag:pilot", "1"], ["bd", "a", "cefghij"]),
        (["rest", "1"], ["abcdefghij"]),
    ],
)
def test_the_projects_are_dealt_out_in_their_order_and_each_once(ramp, steps):
    assert ramp_steps(ramp, list("abcdefghij"), TAGS.__getitem__) == [list(step) for step in steps]


def test_without_projects_there_are_no_steps():
    assert ramp_steps(["1", "tag:pilot", "rest"], [], TAGS.__getitem__) == []


def test_a_tag_that_no_project_has_is_refused_because_it_would_rotate_everything_at_once():
    with pytest.raises(SettingsError, match="no project of this run has tag:empty"):
        ramp_steps(["tag:empty", "rest"], ["a", "b"], TAGS.__getitem__)


# A run that stops


def five(simulator, **settings):
    rows = [row(f"prj-{number}", authType="bearer", authorization="env:TOKEN", **settings) for number in range(1, 6)]
    for each in rows:
        simulator.add_project(each.project_id)
    return rows


def outcomes(results):
    return [result.outcome.value for result in results.values()]


def refuse(simulator, *numbers):
    for number in numbers:
        simulator.add_fault(Fault(kind="status", status=422, method="PATCH", project_id=f"prj-{number}"))


async def test_a_run_stops_at_the_first_failure_above_the_limit_and_says_why(simulator, receiver):
    refuse(simulator, 1, 3)

    results = await run(receiver, *five(simulator), max_failures=1, concurrency=1)

    assert outcomes(results) == ["failed", "rotated", "failed", "not_started", "not_started"]
    assert results["prj-4"].error == "the run was stopped: 2 projects need attention, max_failures allows 1"
    assert results["prj-4"].advice == "Mend what the report names, then run the rows again."
    assert simulator.requests_by_method["PATCH"] == 3


async def test_as_many_failures_as_are_allowed_stop_nothing(simulator, receiver):
    refuse(simulator, 1, 3)

    results = await run(receiver, *five(simulator), max_failures=2, concurrency=1)

    assert outcomes(results) == ["failed", "rotated", "failed", "rotated", "rotated"]


async def test_what_could_not_be_planned_counts_too(simulator, receiver):
    rows = five(simulator)
    del simulator.projects["prj-1"]
    refuse(simulator, 2)

    results = await run(receiver, *rows, max_failures=1, concurrency=1)

    assert outcomes(results) == ["missing", "failed", "not_started", "not_started", "not_started"]


async def test_a_row_that_had_begun_goes_on_to_its_end_also_when_it_must_be_tried_again(simulator, receiver):
    refuse(simulator, 2)
    simulator.add_fault(Fault(kind="reset_after", method="PATCH", project_id="prj-1", times=1))

    results = await run(receiver, *five(simulator), max_failures=0, concurrency=1)

    assert outcomes(results) == ["rotated", "failed", "not_started", "not_started", "not_started"]
    assert len(simulator.projects["prj-1"].received) == 2


async def test_what_was_given_up_counts_as_a_failure(simulator, receiver):
    rows = five(simulator)
    simulator.add_fault(Fault(kind="status", status=503, method="PATCH", project_id="prj-1"))
    async with opened(receiver, *rows, max_failures=0) as rotation:
        await again(rotation, rotation.plan, rotation.project_ids)
        await again(rotation, rotation.apply, ["prj-1"], tries=2)
        await again(rotation, rotation.apply, ["prj-2", "prj-3"])
        first, *others = rotation.results()

    assert first.outcome is Outcome.UNKNOWN
    assert {result.outcome for result in others} == {Outcome.NOT_STARTED}
    assert rotation.failures == rotation.failed_among(["prj-1", "prj-2"]) == 1
    assert rotation.failed_among(["prj-2"]) == 0


async def test_a_run_that_was_told_to_stop_begins_no_further_row(simulator, receiver):
    rows = five(simulator)
    async with opened(receiver, *rows) as rotation:
        await again(rotation, rotation.plan, rotation.project_ids)
        await again(rotation, rotation.apply, ["prj-1", "prj-2"])
        rotation.stop("1 of the first 2 failed", "Mend it.")
        rotation.stop("another reason", "Other advice.")
        await again(rotation, rotation.apply, ["prj-3", "prj-4", "prj-5"])
        results = rotation.results()

    assert [result.outcome.value for result in results] == ["rotated"] * 2 + ["not_started"] * 3
    assert (results[4].error, results[4].advice) == ("the run was stopped: 1 of the first 2 failed", "Mend it.")
    assert [each.project_id for each in rotation.to_run_again()] == ["prj-3", "prj-4", "prj-5"]


# A second look at the first ones


async def looked_at_again(receiver, simulator, change, *rows):
    async with opened(receiver, *rows) as rotation:
        await again(rotation, rotation.plan, rotation.project_ids)
        await again(rotation, rotation.apply, rotation.project_ids)
        change()
        problems = await again(rotation, rotation.verify, rotation.project_ids)
    return rotation, problems


async def test_a_canary_that_is_still_as_it_was_stays_rotated(simulator, receiver):
    simulator.add_project("prj-1")

    rotation, problems = await looked_at_again(receiver, simulator, lambda: None, generated())

    assert problems == []
    assert rotation.results()[0].outcome is Outcome.ROTATED


async def test_a_canary_that_somebody_changed_since_is_drifted(simulator, receiver):
    project = simulator.add_project("prj-1")
    simulator.add_project("prj-2")

    def change():
        project.webhook_url = "https://theirs.example/"

    rotation, (problem,) = await looked_at_again(receiver, simulator, change, generated(), generated("prj-2"))

    assert (problem.project_id, problem.outcome) == ("prj-1", Outcome.DRIFTED)
    assert rotation.failed_among(["prj-1", "prj-2"]) == 1


async def test_a_canary_that_the_receiver_refuses_since_failed(simulator, receiver):
    simulator.add_project("prj-1")

    rotation, (problem,) = await looked_at_again(
        receiver, simulator, simulator.receivers["prj-1"].accepts.clear, generated()
    )

    assert problem.outcome is Outcome.FAILED
    assert "accepted once, and now the receiver refuses" in problem.error
    assert rotation.failures == 1


async def test_a_canary_that_cannot_be_looked_at_is_tried_again(simulator, receiver):
    simulator.add_project("prj-1")

    def change():
        simulator.add_fault(Fault(kind="status", status=503, method="GET", times=2))

    _, problems = await looked_at_again(receiver, simulator, change, generated())

    assert problems == []
