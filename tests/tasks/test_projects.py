import pytest
from prefect.states import Completed, Failed

from jelou_rotation.errors import InvalidRequest, NoAnswer, Throttled
from jelou_rotation.outcomes import Outcome, RowResult
from tasks.projects import (
    RETRY_DELAYS,
    can_pass,
    in_batches,
    in_words,
    name_batch,
    one_after_the_other,
    rotate_projects,
)


class Work:
    """A task that remembers the batches it was given, and ends as it is told."""

    def __init__(self, end=Completed):
        self.batches = []
        self.end = end

    async def __call__(self, _rotation, project_ids, *, return_state):
        assert return_state
        self.batches.append(project_ids)
        return self.end()


class GivenUp:
    """A rotation that remembers what was given up."""

    def __init__(self):
        self.projects = []

    def give_up(self, project_ids):
        self.projects += project_ids


@pytest.mark.parametrize(
    ("projects", "batches", "largest"),
    [(0, 0, 0), (1, 1, 1), (50, 50, 1), (51, 13, 4), (10_000, 16, 625), (10_017, 16, 627)],
)
async def test_one_project_a_task_run_up_to_50_then_16_batches(projects, batches, largest):
    work = Work()
    ids = [f"prj_{number}" for number in range(projects)]

    await in_batches(work, None, ids)

    assert len(work.batches) == batches
    assert max(map(len, work.batches), default=0) == largest
    assert [each for batch in work.batches for each in batch] == ids


async def test_what_is_in_trouble_after_the_last_try_is_given_up():
    rotation = GivenUp()

    await in_batches(Work(Failed), rotation, ["prj_1", "prj_2"])

    assert rotation.projects == ["prj_1", "prj_2"]


async def test_one_after_the_other_a_project_a_task_run():
    work = Work()

    await one_after_the_other(work, GivenUp(), ["prj_1", "prj_2"])

    assert work.batches == [["prj_1"], ["prj_2"]]


@pytest.mark.parametrize(("ids", "name"), [(["prj_1"], "prj_1"), (["prj_1", "prj_2", "prj_3"], "prj_1 and 2 more")])
def test_a_task_run_is_named_by_its_first_project(ids, name):
    assert name_batch({"project_ids": ids}) == name


@pytest.mark.parametrize(
    ("error", "retried"), [(NoAnswer("x"), True), (Throttled("x"), True), (InvalidRequest("x"), False), (None, False)]
)
def test_only_what_may_pass_is_tried_again(error, retried):
    assert can_pass(rotate_projects, None, Failed(data=error)) is retried


def test_the_task_waits_longer_each_time_and_with_jitter():
    assert rotate_projects.retry_delay_seconds == RETRY_DELAYS == sorted(RETRY_DELAYS)
    assert rotate_projects.retries == len(RETRY_DELAYS)
    assert rotate_projects.retry_jitter_factor


def test_a_tasks_state_says_in_words_what_needs_attention():
    state = in_words([RowResult("prj_1", Outcome.MISSING, error="Jelou answered 404 to GET")])

    assert state.is_failed()
    assert state.message == "prj_1: missing: Jelou answered 404 to GET"
    assert in_words([]) is None
