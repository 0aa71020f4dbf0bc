"""How far a run is, while it runs: an artifact in the Prefect UI and a bar in the terminal."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from uuid import UUID

from prefect.artifacts import acreate_progress_artifact, aupdate_progress_artifact
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from jelou_rotation.rotation import Rotation

PROGRESS_KEY = "jelou-rotation-progress"
_BAR_SECONDS = 0.2
_ARTIFACT_TICKS = 10


@asynccontextmanager
async def shown_progress(rotation: Rotation) -> AsyncIterator[None]:
    """Keep the artifact `jelou-rotation-progress` and, in a terminal, a bar on standard error up to date."""
    artifact = await acreate_progress_artifact(0.0, key=PROGRESS_KEY, description="Steps done: plan, then rotate.")
    with _bar() as bar:
        watch = asyncio.create_task(_watch(rotation, artifact, bar))
        try:
            yield
        finally:
            watch.cancel()
            with suppress(asyncio.CancelledError):
                await watch
            _draw(rotation, bar)
            await aupdate_progress_artifact(artifact, _percent(rotation))


def _bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bar = Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty(), auto_refresh=False)
    bar.add_task("steps", total=None)
    return bar


async def _watch(rotation: Rotation, artifact: UUID, bar: Progress) -> None:
    tick = 0
    while True:
        await asyncio.sleep(_BAR_SECONDS)
        _draw(rotation, bar)
        tick += 1
        if tick % _ARTIFACT_TICKS == 0:
            await aupdate_progress_artifact(artifact, _percent(rotation))


def _draw(rotation: Rotation, bar: Progress) -> None:
    if bar.disable:
        return
    done, total = rotation.steps_done()
    bar.update(bar.task_ids[0], completed=done, total=total, refresh=True)


def _percent(rotation: Rotation) -> float:
    done, total = rotation.steps_done()
    return 100.0 * done / total
