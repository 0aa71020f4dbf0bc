"""A person's consent to a plan: by its hash in a later run, or by resuming this one."""

import asyncio
import json
from dataclasses import asdict
from enum import StrEnum
from typing import Any

from prefect.artifacts import Artifact, acreate_table_artifact
from prefect.flow_runs import apause_flow_run
from prefect.input import RunInput
from prefect.logging import get_run_logger
from pydantic import Field

from jelou_rotation.approval import differences, plan_hash, plan_table
from jelou_rotation.errors import NotApproved
from jelou_rotation.limits import Limits
from jelou_rotation.report_markdown import counted
from jelou_rotation.rotation import Rotation

PLAN_KEY = "jelou-rotation-plan"
APPROVAL_SECONDS = 3600
_POLL_SECONDS = 2
_GRACE_SECONDS = 600


class Approval(StrEnum):
    """Whether a person is asked before anything is sent."""

    NONE = "none"
    PAUSE = "pause"


class Consent(RunInput):
    """What a person types to resume a paused run."""

    projects: int = Field(description="How many projects would change. Any other number applies nothing.")


async def approve(rotation: Rotation, limits: Limits, approved_plan: str, approval: Approval, above: int) -> None:
    """
    Hold the plan against the limits, the plan somebody approved, and the person who is asked.

    Raises LimitExceeded and NotApproved; nothing was sent then.
    """
    limits.check(rotation.plans(), len(rotation.project_ids), rotation.failures)
    if approved_plan:
        await _require_same(rotation, approved_plan.strip())
    if approval is Approval.PAUSE and len(rotation.plans()) > above:
        await _ask(rotation)


async def publish_plan(rotation: Rotation) -> str:
    """Keep the plan as the artifact `jelou-rotation-plan-HASH`, and return the hash."""
    rows = rotation.planned_rows()
    name = plan_hash(rows)
    description = f"The plan {name}: {counted(len(rotation.plans()), 'project')} would change."
    await acreate_table_artifact([asdict(row) for row in rows], key=f"{PLAN_KEY}-{name}", description=description)
    return name


async def _require_same(rotation: Rotation, approved: str) -> None:
    now = rotation.planned_rows()
    if plan_hash(now) == approved:
        rotation.note(f"the plan is the approved one, {approved}")
        return
    found = await Artifact.aget(f"{PLAN_KEY}-{approved}")
    if found is None:
        raise NotApproved(
            f"the plan is {plan_hash(now)} now, and this Prefect server knows no plan {approved}: run mode plan again"
        )
    changed = differences(_rows(found.data), now)
    raise NotApproved(
        "\n  ".join([f"the plan is no longer {approved}, so nothing was applied:", *changed])
        + f"\nLook at it, then approve the plan as it is now: approved_plan={await publish_plan(rotation)}"
    )


def _rows(data: Any) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = json.loads(data) if isinstance(data, str) else data
    return rows


async def _ask(rotation: Rotation) -> None:
    count = len(rotation.plans())
    name = await publish_plan(rotation)
    page = (
        f"**{counted(count, 'project')} would change** (plan `{name}`, in the artifact `{PLAN_KEY}-{name}`).\n\n"
        f"{plan_table(rotation.planned_rows())}\n\n"
        f"To go on, type how many projects would change. To refuse, close this and cancel the run."
        f" Without an answer within {APPROVAL_SECONDS // 60} minutes nothing is applied."
    )
    rotation.note(f"paused for approval of plan {name}")
    get_run_logger().info(
        "Waiting for approval: open the menu ⋮ at the top right, Resume, type the number of projects."
    )
    try:
        async with asyncio.timeout(APPROVAL_SECONDS):
            # Prefect's own timeout is later, because it would end the run in words of its own.
            given = await apause_flow_run(
                wait_for_input=Consent.with_initial_data(description=page),
                timeout=APPROVAL_SECONDS + _GRACE_SECONDS,
                poll_interval=_POLL_SECONDS,
            )
    except TimeoutError:
        raise NotApproved(f"nobody approved plan {name} within {APPROVAL_SECONDS // 60} minutes") from None
    if given.projects != count:
        raise NotApproved(f"{counted(count, 'project')} would change, and {given.projects:,} was typed")
    rotation.note(f"plan {name} was approved")
