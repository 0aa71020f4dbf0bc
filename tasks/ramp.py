"""A rotation in steps: some projects first, a pause, a second look at them, then more."""

import asyncio
from collections.abc import Sequence

from jelou_rotation.limits import ramp_steps
from jelou_rotation.report_markdown import counted
from jelou_rotation.rotation import Rotation
from tasks.projects import in_batches, rotate_projects, verify_projects


async def in_steps(rotation: Rotation, ramp: Sequence[str], pause_minutes: float) -> None:
    """
    Rotate step by step; between two steps wait, and look at the first projects, the canaries, once more.

    A canary that fails, at once or later, stops the run before the next step.
    """
    first, *others = ramp_steps(ramp, rotation.to_apply(), rotation.tagged) or [[]]
    steps = 1 + len(others)
    await _rotate(rotation, first, f", step 1 of {steps}" if others else "")
    _require_canaries(rotation, first)
    for number, projects in enumerate(others, 2):
        if rotation.stopped_by:
            return
        rotation.note(f"waiting {pause_minutes:g} minutes before step {number} of {steps}")
        await _wait(pause_minutes)
        rotation.note(f"looking at the first {counted(len(first), 'project')} once more")
        await in_batches(verify_projects, rotation, first)
        _require_canaries(rotation, first)
        await _rotate(rotation, projects, f", step {number} of {steps}")


async def _wait(minutes: float) -> None:
    await asyncio.sleep(60 * minutes)


async def _rotate(rotation: Rotation, projects: Sequence[str], step: str) -> None:
    if projects and not rotation.stopped_by:
        rotation.note(f"rotating {counted(len(projects), 'project')}{step}")
        await in_batches(rotate_projects, rotation, projects)


def _require_canaries(rotation: Rotation, canaries: Sequence[str]) -> None:
    if failed := rotation.failed_among(canaries):
        rotation.stop(
            f"{failed:,} of the first {len(canaries):,} failed",
            "Mend what the report names for them, then run the rows again.",
        )
