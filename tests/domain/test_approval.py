"""The plan as a person approves it, and what differs from it later."""

import json
from dataclasses import asdict, replace
from datetime import timedelta

import pytest

from jelou_rotation.approval import PlannedRow, differences, plan_hash, plan_table
from jelou_rotation.simulator import Fault, Switches
from tests.domain.world import again, opened, row

OLD = "https://old.example/hook?token=canary-old"
NEW = "https://new.example/hook?token=canary-new"


@pytest.fixture
def simulator(simulator, monkeypatch):
    monkeypatch.setenv("OTHER", "canary-other")
    for number in (1, 2, 3):
        simulator.add_project(f"prj-{number}", OLD)
    return simulator


def rows():
    """One that changes, one that rotates, one that is as wanted."""
    return [
        row("prj-1", webhookUrl=NEW),
        row("prj-2", authType="bearer", authorization="env:TOKEN"),
        row("prj-3", webhookUrl=OLD),
    ]


async def plan(receiver, *chosen, **options):
    async with opened(receiver, *chosen, plan_only=True, **options) as rotation:
        await again(rotation, rotation.plan, rotation.project_ids)
        return rotation.planned_rows()


def as_kept(planned):
    """What the plan's artifact holds, after its way through JSON."""
    return json.loads(json.dumps([asdict(each) for each in planned]))


async def test_the_same_plan_has_the_same_hash_in_another_run(simulator, receiver):
    first, second = await plan(receiver, *rows()), await plan(receiver, *rows())

    assert plan_hash(first) == plan_hash(second)
    assert len(plan_hash(first)) == 12
    assert differences(as_kept(first), second) == []


async def test_the_order_of_the_manifest_is_no_part_of_the_plan(simulator, receiver):
    assert plan_hash(await plan(receiver, *rows())) == plan_hash(await plan(receiver, *reversed(rows())))


def jelou_changes(**changes):
    def change(simulator, chosen):
        for name, value in changes.items():
            setattr(simulator.projects["prj-1"], name, value)
        return chosen

    return change


def later(simulator, chosen):
    simulator.projects["prj-1"].updated_at += timedelta(seconds=1)
    return chosen


def row_changes(number, **settings):
    def change(_simulator, chosen):
        given = chosen[number].model_dump(mode="json", by_alias=True, exclude_unset=True)
        return [row(**given | settings) if index == number else each for index, each in enumerate(chosen)]

    return change


def goes_missing(simulator, chosen):
    del simulator.projects["prj-1"]
    return chosen


CHANGES = {
    "another address in the manifest": (
        row_changes(0, webhookUrl="https://third.example/"),
        (
            "prj-1: the approved change is webhookUrl: https://old.example/hook?… -> https://new.example/hook?…;"
            " now it would be webhookUrl: https://old.example/hook?… -> https://third.example/"
        ),
    ),
    "another query in the manifest": (
        row_changes(0, webhookUrl=f"{NEW}-more"),
        "prj-1: its row in the manifest changed",
    ),
    "another tag in the manifest": (row_changes(0, tags="pilot"), "prj-1: its row in the manifest changed"),
    "another reference": (
        row_changes(1, authorization="env:OTHER"),
        (
            "prj-2: the approved change is authorization: not readable -> env:TOKEN, no way back;"
            " now it would be authorization: not readable -> env:OTHER, no way back"
        ),
    ),
    "another address at Jelou": (
        jelou_changes(webhook_url="https://theirs.example/"),
        (
            "prj-1: the approved change is webhookUrl: https://old.example/hook?… -> https://new.example/hook?…;"
            " now it would be webhookUrl: https://theirs.example/ -> https://new.example/hook?…"
        ),
    ),
    "another query at Jelou": (
        jelou_changes(webhook_url=f"{OLD}-more"),
        "prj-1: somebody changed the integration at Jelou",
    ),
    "another type at Jelou": (
        jelou_changes(auth_type="api_key"),
        "prj-1: somebody changed the integration at Jelou",
    ),
    "another updatedAt at Jelou": (later, "prj-1: somebody changed the integration at Jelou"),
    "changed at Jelou as wanted": (jelou_changes(webhook_url=NEW), "prj-1: was planned, is unchanged"),
    "gone at Jelou": (goes_missing, "prj-1: was planned, is missing"),
    "one project less": (lambda _, chosen: chosen[:2], "prj-3: is no longer among the projects"),
}


@pytest.mark.parametrize(("change", "said"), CHANGES.values(), ids=CHANGES)
async def test_a_plan_that_changed_has_another_hash_and_says_in_words_what_changed(simulator, receiver, change, said):
    approved = await plan(receiver, *rows())
    now = await plan(receiver, *change(simulator, rows()))

    assert plan_hash(now) != plan_hash(approved)
    assert differences(as_kept(approved), now) == [said]


async def test_a_project_that_came_is_told(simulator, receiver):
    approved = await plan(receiver, *rows()[:2])

    assert differences(as_kept(approved), await plan(receiver, *rows())) == ["prj-3: was not among the projects"]


async def test_what_changes_nothing_is_no_difference(simulator, receiver):
    approved = await plan(receiver, *rows())
    simulator.projects["prj-3"].updated_at += timedelta(seconds=1)
    simulator.switches = Switches(authorization_in_get="echoed")

    assert plan_hash(await plan(receiver, *rows())) == plan_hash(approved)


async def test_an_integration_that_would_be_created_is_part_of_the_plan(simulator, receiver):
    del simulator.projects["prj-1"]
    approved = await plan(receiver, *rows(), create=True)

    assert approved[0].changes == (
        "integration: none -> created, no way back; webhookUrl: none -> https://new.example/hook?…, no way back"
    )
    simulator.create("prj-1", OLD, "bearer", None)
    (said,) = differences(as_kept(approved), await plan(receiver, *rows(), create=True))
    assert said.startswith("prj-1: the approved change is integration: none -> created")


async def test_a_plan_shows_no_secret(simulator, receiver):
    simulator.switches = Switches(authorization_in_get="echoed", error_body="echo")
    simulator.add_fault(Fault(kind="status", status=422, method="GET", project_id="prj-3"))
    approved = await plan(receiver, *rows())
    later(simulator, None)
    simulator.projects["prj-1"].webhook_url += "-more"
    now = await plan(receiver, *row_changes(1, authorization="env:OTHER")(simulator, rows()))

    shown = json.dumps(as_kept(approved)) + plan_table(now) + "\n".join(differences(as_kept(approved), now))
    assert [each.outcome for each in now] == ["planned", "planned", "failed"]
    assert "canary" not in shown


def made_up(number, **changes):
    return replace(PlannedRow(f"prj-{number}", "planned", f"a -> {number}", "m", "j"), **changes)


def test_a_long_list_of_differences_is_cut_in_the_manifests_order():
    former = [made_up(number) for number in range(30)]

    told = differences(as_kept(former), [])

    assert told == [*(f"prj-{number}: is no longer among the projects" for number in range(20)), "and 10 more"]
    assert len(differences(as_kept(former[:20]), [])) == 20


def test_the_table_has_the_first_fifty_changes_and_nothing_else():
    table = plan_table([made_up(0, outcome="unchanged"), *(made_up(number) for number in range(1, 53))])

    assert table.count("\n| `prj-") == 50
    assert "prj-0" not in table
    assert table.endswith("and 2 more, in the artifact")


def test_a_plan_cannot_break_the_table_it_is_shown_in():
    table = plan_table([made_up(1, project_id="a|b", changes="x | <b>y</b>\n| z")])

    assert len(table.splitlines()) == 3
    assert "<b>" not in table
