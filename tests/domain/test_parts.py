"""A run in parts: whose rows are whose, how a part keeps in touch, and that no try of it rotates a row twice."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import SecretStr

from jelou_rotation import parts
from jelou_rotation.errors import Busy, ManifestError, SettingsError, StoreUnavailable
from jelou_rotation.limits import Limits
from jelou_rotation.manifest import Manifest
from jelou_rotation.outcomes import Evidence, Outcome, RowResult
from jelou_rotation.parts import Part, hand_in, in_touch, read, written
from jelou_rotation.plan import Change
from jelou_rotation.records import Step, new_key
from jelou_rotation.records.signs import Sign, Word
from jelou_rotation.records.store import Store
from jelou_rotation.row import AuthType
from jelou_rotation.simulator import Fault
from tests.domain.world import again, generated, open_store, opened, record_of, row, run

RUN = "0197c5a2-1111-7222-8333-444455556666"
PART = Part(2, 3, 1, RUN, "a" * 64)

# Whose rows


def test_a_part_is_told_to_its_process_as_a_text():
    assert Part.parse(str(PART)) == PART
    assert PART.name == "part 2 of 3"


@pytest.mark.parametrize("text", ["2", "2/3", "a/3/1/run/sha", f"{PART}/more", "///"])
def test_a_text_that_no_run_has_written_is_refused_in_words(text):
    with pytest.raises(SettingsError, match="part: is set by a run with shards; leave it empty"):
        Part.parse(text)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 20])
def test_every_row_is_in_one_part_and_the_parts_are_of_one_size(count):
    manifest = Manifest("m.yaml", PART.sha256, tuple(row(f"prj-{n}", authType="no_auth") for n in range(20)))

    dealt = [replace(PART, number=number, count=count).of(manifest).rows for number in range(1, count + 1)]

    assert sorted(each.project_id for rows in dealt for each in rows) == sorted(r.project_id for r in manifest.rows)
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1


def test_a_manifest_that_changed_meanwhile_is_refused():
    with pytest.raises(ManifestError, match=r"m\.yaml: changed since the run began"):
        PART.of(Manifest("m.yaml", "b" * 64, ()))


@pytest.mark.parametrize(
    ("limits", "needed"),
    [
        (Limits(), False),
        (Limits(max_changes="2"), True),
        (Limits(max_changes="3"), False),
        (Limits(max_host_changes="0"), True),
        (Limits(max_changes="10", max_host_changes="0"), True),
        (Limits(max_host_changes="0", max_changes="0"), True),
        (Limits(max_host_changes="", max_downgrades="0", max_failures="0"), False),
        (Limits(max_host_changes="1", max_changes="1"), True),
    ],
)
def test_the_whole_is_planned_only_where_a_plan_could_be_above_a_limit(limits, needed):
    rows = [row("a", webhookUrl="https://panel.example/a"), generated("b"), generated("c")]

    assert limits.need_plan(rows) is needed
    assert Limits().need_plan([*rows, row("d", authType="no_auth")])


def test_a_limit_that_is_a_share_is_one_of_the_whole_for_every_part():
    limits = Limits(max_changes="10%", max_failures="", max_host_changes="7")

    assert limits.counted(50) == {
        "max_changes": "5",
        "max_failures": "",
        "max_host_changes": "7",
        "max_downgrades": "0",
    }


# What a part hands in


def test_what_a_part_hands_in_is_read_back_as_it_was():
    whole = RowResult(
        "prj",
        Outcome.ROTATED,
        Evidence.READ_BACK,
        (Change("webhookUrl", None, "https://panel.example/\ud800", can_be_undone=True),),
        2,
        ("authType",),
        "error\0",
        "advice",
        ("one", "two"),
        datetime(2026, 5, 1, tzinfo=UTC),
    )
    bare = RowResult("other", Outcome.NOT_STARTED)

    assert read(written([whole, bare], {"PATCH": 2})) == ([whole, bare], {"PATCH": 2})
    assert written([whole], {}).isascii()


# The place where they meet


class Clock:
    def __init__(self):
        self.moment = datetime(2026, 5, 1, tzinfo=UTC)

    def __call__(self):
        return self.moment

    def forward(self, seconds):
        self.moment += timedelta(seconds=seconds)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
async def table(store_url, clock):
    async with Store.open(store_url, SecretStr(new_key()), now=clock) as store:
        table = store.parts(RUN)
        await table.open(2)
        yield table


def sign(done, failures):
    return Sign("vm:1", done, failures, {"GET": done})


async def test_a_part_that_has_not_begun_is_told_from_one_that_is_silent(table, clock):
    await table.beat(1, 1, sign(5, 2))
    clock.forward(7)

    told = await table.look()

    assert (told[1].sign, told[1].silent_seconds, told[1].done, told[1].failures) == (sign(5, 2), 7, 5, 2)
    assert (told[2].sign, told[2].silent_seconds, told[2].done, told[2].failures) == (None, None, 0, 0)
    assert not told[1].has_ended


async def test_a_part_hears_how_long_its_run_is_silent_and_that_it_shall_stop(table, clock):
    clock.forward(9)
    assert (await table.beat(1, 1, sign(0, 0))).silent_seconds == 9
    await table.look()
    await table.stop("too many failed")

    word = await table.beat(2, 1, sign(0, 0))

    assert (word.stop, word.silent_seconds) == ("too many failed", 0)


async def test_a_part_hears_how_many_have_not_ended(table):
    assert (await table.beat(1, 1, sign(0, 0))).parts_left == 2
    await table.hand_in(2, 1, sign(4, 1), "its report")
    assert (await table.beat(1, 1, sign(0, 0))).parts_left == 1
    await table.expect(2, 2)
    assert (await table.beat(1, 1, sign(0, 0))).parts_left == 2


async def test_a_former_try_is_not_listened_to_any_more(table):
    await table.beat(1, 1, sign(5, 5))
    await table.expect(1, 2)

    assert await table.beat(1, 1, sign(6, 6)) is None
    await table.hand_in(1, 1, sign(6, 6), "of the former try")

    told = (await table.look())[1]
    assert (told.silent_seconds, told.failures, told.has_ended) == (None, 0, False)
    assert await table.beat(1, 2, sign(0, 0))


async def test_what_a_part_hands_in_stays_until_the_run_is_over(table):
    await table.hand_in(2, 1, sign(4, 1), "its report")

    told = (await table.look())[2]
    assert (told.has_ended, await table.report(2)) == (True, "its report")

    await table.close()
    assert await table.look() == {}
    assert await table.beat(2, 1, sign(0, 0)) is None


async def test_what_a_dead_run_left_is_swept_away_a_day_later_and_not_what_lives(store_url, clock):
    async with Store.open(store_url, SecretStr(new_key()), now=clock) as store:
        dead, living, new = map(store.parts, ("dead", "living", "new"))
        await dead.open(1)
        await living.open(1)
        clock.forward(90_000)
        await living.look()
        clock.forward(10)

        await new.open(1)

        assert await dead.look() == {}
        assert len(await living.look()) == len(await new.look()) == 1


# Keeping in touch


@pytest.fixture
def hurried(monkeypatch):
    monkeypatch.setattr(parts, "BEAT_SECONDS", 0.01)


class Table:
    """What a part hears, told by the test."""

    def __init__(self, *words):
        self.words = list(words)
        self.beats = 0

    async def beat(self, *_arguments):
        self.beats += 1
        word = self.words.pop(0) if len(self.words) > 1 else self.words[0]
        if isinstance(word, Exception):
            raise word
        return word


def word(stop=None, silent=0.0, parts_left=3):
    return Word(stop, silent, parts_left)


async def heard(receiver, *words):
    """Why a part that hears these words, one after the other, begins no further row."""
    table = Table(*words)
    async with opened(receiver, generated()) as rotation, in_touch(rotation, PART, table), asyncio.timeout(5):
        while not rotation.stopped_by and table.beats < len(words) + 3:  # noqa: ASYNC110 - what is watched
            await asyncio.sleep(0.01)
    return rotation.stopped_by and rotation.stopped_by.reason


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([word()], None),
        ([word(), word("too many failed")], "too many failed"),
        ([word(), None], "this part was taken for lost, and another process works on it"),
        ([word(), word(silent=parts.GONE_SECONDS - 1)], None),
        ([word(), StoreUnavailable("away"), word()], None),
    ],
    ids=str,
)
async def test_a_part_stops_for_what_it_hears(simulator, receiver, hurried, words, reason):
    assert await heard(receiver, *words) == reason


async def test_a_part_stops_when_its_run_is_gone(simulator, receiver, hurried, monkeypatch):
    monkeypatch.setattr(parts, "GONE_SECONDS", 0.1)

    assert await heard(receiver, word(), *[word(silent=0.1)] * 100) == "the run this is a part of is gone"


async def test_a_run_is_not_gone_only_because_the_store_was_away_for_both(simulator, receiver, hurried, monkeypatch):
    monkeypatch.setattr(parts, "GONE_SECONDS", 0.5)

    assert await heard(receiver, *[word()] * 60, StoreUnavailable("away"), word(silent=0.5), word()) is None


@pytest.mark.parametrize("first", [None, word(silent=parts.GONE_SECONDS)], ids=str)
async def test_a_part_that_no_run_waits_for_is_refused(simulator, receiver, first):
    with pytest.raises(Busy, match="no run is at work that waits for part 2 of 3, try 1"):
        await heard(receiver, first)


async def test_the_parts_that_are_left_share_the_bound_on_requests(simulator, receiver, hurried, monkeypatch):
    table, bounds = Table(word(parts_left=3), word(parts_left=2)), []
    async with opened(receiver, generated()) as rotation:
        monkeypatch.setattr(rotation, "share_budget", bounds.append)
        async with in_touch(rotation, PART, table), asyncio.timeout(5):
            assert bounds == [3]
            while len(bounds) < 2:  # noqa: ASYNC110 - what is watched
                await asyncio.sleep(0.01)

    assert bounds[:2] == [3, 2]


# The run, and what it hears


async def test_failures_in_all_parts_together_stop_the_run(simulator, receiver):
    async with opened(receiver, generated(), max_failures=3) as rotation:
        rotation.hear(1, 3)
        assert not rotation.stopped_by
        rotation.hear(1, 4)
        assert rotation.stopped_by.reason == "4 projects need attention, max_failures allows 3"


async def test_what_the_parts_say_becomes_the_report_of_the_run(simulator, receiver):
    rows = [generated(name) for name in ("a", "b", "c", "d")]
    async with opened(receiver, *rows) as rotation:
        rotation.hear(5, 1)
        assert rotation.steps_done() == (5, 8)
        rotation.settle([RowResult("a", Outcome.ROTATED), RowResult("b", Outcome.FAILED)], {"PATCH": 2})
        rotation.lose(["a", "c"], "part 2 of 3 was lost", had_begun=True)
        rotation.lose(["d"], "part 3 of 3 was lost", had_begun=False)

        outcomes = [result.outcome for result in rotation.results()]

        assert outcomes == [Outcome.ROTATED, Outcome.FAILED, Outcome.UNKNOWN, Outcome.NOT_STARTED]
        assert rotation.results()[2].error == "part 2 of 3 was lost"
        assert rotation.requests["PATCH"] == 2
        assert [each.project_id for each in rotation.to_run_again()] == ["b", "c", "d"]
        rotation.settle([RowResult("b", Outcome.ROTATED)], {"PATCH": 1})
        assert rotation.failures == 2


async def test_a_part_hands_in_all_of_its_rows(simulator, receiver):
    simulator.add_project("prj-1")
    async with opened(receiver, generated(), generated("absent"), run_id=RUN) as rotation:
        table = rotation.store.parts(RUN)
        await table.open(3)
        async with in_touch(rotation, PART, table):
            await again(rotation, rotation.plan, ["prj-1", "absent"])
            await again(rotation, rotation.apply, rotation.to_apply())
        await hand_in(rotation, PART, table)

        results, requests = read(await table.report(2))

        assert results == rotation.results()
        assert [result.outcome for result in results] == [Outcome.ROTATED, Outcome.MISSING]
        assert requests["PATCH"] == simulator.requests_by_method["PATCH"]
        told = (await table.look())[2]
        assert told.sign == Sign(rotation.holder, 4, 1, requests)


# One run, many tries


@pytest.fixture
def project(simulator):
    return simulator.add_project("prj-1")


async def interrupted(simulator, receiver, **options):
    """A run that ends when its PATCH has left and no answer has come."""
    simulator.add_fault(Fault(kind="reset_after", method="PATCH", times=1))
    async with opened(receiver, generated(), **options) as rotation:
        await again(rotation, rotation.plan, ["prj-1"])
        await again(rotation, rotation.apply, ["prj-1"], tries=1)
    assert (await record_of()).step is Step.SENT


@pytest.mark.parametrize("orders", [{}, {"leaked": True}], ids=str)
async def test_what_an_earlier_try_has_rotated_is_never_rotated_twice(simulator, receiver, project, orders):
    await run(receiver, generated(), run_id=RUN, **orders)

    result = await run(receiver, generated(), run_id=RUN, **orders)

    assert (result.outcome, result.evidence, result.attempts) == (Outcome.ROTATED, Evidence.READ_BACK, 0)
    assert result.notes == ("rotated by an earlier try of this run, which ended before it could report it",)
    assert simulator.requests_by_method["PATCH"] == 1


async def test_another_run_rotates_what_is_due(simulator, receiver, project):
    await run(receiver, generated(overlap="0"), run_id=RUN)

    assert (await run(receiver, generated(overlap="0"), run_id="another")).attempts == 1
    assert simulator.requests_by_method["PATCH"] == 2


async def test_what_is_rotated_by_another_process_between_plan_and_hold_is_not_rotated_twice(
    simulator, receiver, project
):
    async with opened(receiver, generated(), run_id=RUN) as rotation:
        await again(rotation, rotation.plan, ["prj-1"])
        await run(receiver, generated(), run_id=RUN)
        await again(rotation, rotation.apply, ["prj-1"])

        (result,) = rotation.results()

    assert result.outcome is Outcome.ROTATED
    assert simulator.requests_by_method["PATCH"] == 1


@pytest.mark.parametrize("change", [{"webhook_url": "https://elsewhere.example"}, {"updated_at": datetime.now(UTC)}])
async def test_what_somebody_else_changed_after_an_earlier_try_is_drift(simulator, receiver, project, change):
    wanted = generated(webhookUrl=project.webhook_url)
    await run(receiver, wanted, run_id=RUN)
    for name, value in change.items():
        setattr(project, name, value)

    result = await run(receiver, wanted, run_id=RUN)

    assert result.outcome is Outcome.DRIFTED
    assert "an earlier try of this run rotated it" in result.error
    assert simulator.requests_by_method["PATCH"] == 1


async def test_a_leaked_credential_that_an_earlier_try_could_not_prove_dead_stays_a_failure(
    simulator, receiver, project
):
    await run(receiver, generated(), run_id="before")
    simulator.receivers["prj-1"].checks = False
    first = await run(receiver, generated(), run_id=RUN, leaked=True)

    again_ = await run(receiver, generated(), run_id=RUN, leaked=True)

    assert (first.outcome, again_.outcome) == (Outcome.FAILED, Outcome.FAILED)
    assert again_.error == "the leaked credential was replaced by an earlier try of this run"
    assert simulator.requests_by_method["PATCH"] == 2


async def test_a_leaked_credential_that_an_earlier_try_was_replacing_gets_the_one_value_of_that_try(
    simulator, receiver, project
):
    await interrupted(simulator, receiver, run_id=RUN, leaked=True)

    result = await run(receiver, generated(), run_id=RUN, leaked=True)

    assert result.outcome is Outcome.ROTATED
    assert len({body["authorization"] for body in project.received}) == 1


async def test_the_value_of_an_earlier_run_that_is_only_finished_does_not_count_as_rotated_by_this_one(
    simulator, receiver, project
):
    await interrupted(simulator, receiver, run_id="before")
    finished = await run(receiver, generated(), run_id=RUN, leaked=True)
    assert "finished with the value of that time" in finished.error

    result = await run(receiver, generated(), run_id=RUN, leaked=True)

    assert result.attempts == 1
    assert len({body["authorization"] for body in project.received}) == 2
    assert (await record_of()).made_in == RUN


@pytest.mark.parametrize("ending", ["discard", "rollback"])
async def test_a_credential_that_was_dropped_again_was_made_by_no_run(simulator, receiver, project, ending):
    await run(receiver, generated(), run_id="before")
    async with open_store() as store:
        lease = (await store.take(["prj-1"], "vm:1", RUN, 60))["prj-1"]
        staged = await store.stage(lease, SecretStr("canary-next"), AuthType.BEARER)
        assert staged.made_in == RUN
        if ending == "discard":
            dropped = await store.discard(lease)
        else:
            await store.mark_sent(lease)
            await store.begin_rollback(lease)
            dropped = await store.finish_rollback(lease, staged.integration)

    assert dropped.made_in is None
