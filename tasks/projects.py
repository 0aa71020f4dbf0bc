"""The tasks that talk to Jelou, and how a manifest is dealt out to them."""

import asyncio
import math
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, ParamSpec, TypeVar

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Failed

from jelou_rotation.errors import Passing
from jelou_rotation.outcomes import RowResult
from jelou_rotation.report_markdown import counted
from jelou_rotation.rotation import Rotation

P = ParamSpec("P")
R = TypeVar("R")

# So many projects a person can look through one by one. Above, a task run costs too much to be had for each project:
# about 16 ms of two cores (measured, see benchmarks/README.md).
MOST_ALONE = 50
MAX_BATCHES = 16

# About a minute and a half in all: longer than a gateway's restart, shorter than anybody's patience.
RETRY_DELAYS = [0.5, 1, 2, 4, 8, 15, 30, 30]


def can_pass(_task: Task[..., Any], _task_run: TaskRun, state: State[Any]) -> bool:
    """Retry only what can succeed on another try."""
    return isinstance(state.data, Passing)


def name_batch(parameters: dict[str, Any]) -> str:
    """`prj_1`, or `prj_1 and 49 more`."""
    first, *others = parameters["project_ids"]
    return f"{first} and {len(others)} more" if others else first


def talks_to_jelou(name: str) -> Callable[[Callable[P, Coroutine[Any, Any, R]]], Task[P, Coroutine[Any, Any, R]]]:
    """A task that is tried again while the trouble may pass, and keeps nothing of what it was given."""
    return task(
        name=name,
        task_run_name=name_batch,  # type: ignore[arg-type]  # its protocol also wants a class method no function has
        retries=len(RETRY_DELAYS),
        retry_delay_seconds=RETRY_DELAYS,
        retry_jitter_factor=0.5,
        retry_condition_fn=can_pass,
        cache_policy=NO_CACHE,
        persist_result=False,
    )


@talks_to_jelou("plan")
async def plan_projects(rotation: Rotation, project_ids: Sequence[str]) -> State[Any] | None:
    """Read these projects from Jelou and compare them with the manifest."""
    return in_words(await rotation.plan(project_ids))


@talks_to_jelou("rotate")
async def rotate_projects(rotation: Rotation, project_ids: Sequence[str]) -> State[Any] | None:
    """Send what was planned for these projects and verify each."""
    return in_words(await rotation.apply(project_ids))


@talks_to_jelou("verify")
async def verify_projects(rotation: Rotation, project_ids: Sequence[str]) -> State[Any] | None:
    """Look once more at these projects, which are done."""
    return in_words(await rotation.verify(project_ids))


@talks_to_jelou("close overlap")
async def close_projects(rotation: Rotation, project_ids: Sequence[str]) -> State[Any] | None:
    """End the overlaps of these projects whose time is over."""
    return in_words(await rotation.apply(project_ids))


@talks_to_jelou("new signing secret")
async def renew_signing_secrets(rotation: Rotation, project_ids: Sequence[str]) -> State[Any] | None:
    """Have Jelou make new signing secrets for these projects."""
    return in_words(await rotation.apply(project_ids))


@talks_to_jelou("audit")
async def audit_projects(rotation: Rotation, project_ids: Sequence[str]) -> State[Any] | None:
    """Hold these projects against the manifest and the record; nothing is written."""
    return in_words(await rotation.plan(project_ids))


def in_words(problems: list[RowResult]) -> State[Any] | None:
    """The task's state: Failed with a sentence for each row that needs attention, else Completed."""
    if not problems:
        return None
    return Failed(message="\n".join(f"{row.project_id}: {row.outcome}: {row.error}" for row in problems[:20]))


async def plan_all(rotation: Rotation) -> None:
    """Read every project of the run and compare it with the manifest."""
    rotation.note(f"reading {counted(len(rotation.project_ids), 'project')}")
    await in_batches(plan_projects, rotation, rotation.project_ids)
    rotation.note(f"planned: {counted(len(rotation.plans()), 'project')} would change")


async def in_batches(work: Task[..., Any], rotation: Rotation, project_ids: Sequence[str]) -> None:
    """One project a task run up to 50 projects, 16 batches above; a task run that fails stops no other."""
    size = 1 if len(project_ids) <= MOST_ALONE else math.ceil(len(project_ids) / MAX_BATCHES)
    batches = [project_ids[start : start + size] for start in range(0, len(project_ids), size)]
    await asyncio.gather(*(_to_its_end(work, rotation, batch) for batch in batches))


async def one_after_the_other(work: Task[..., Any], rotation: Rotation, project_ids: Sequence[str]) -> None:
    """A task run a project; the next begins when the last has ended."""
    for project_id in project_ids:
        await _to_its_end(work, rotation, [project_id])


async def _to_its_end(work: Task[..., Any], rotation: Rotation, batch: Sequence[str]) -> None:
    state = await work(rotation, batch, return_state=True)
    if not state.is_completed():
        rotation.give_up(batch)
