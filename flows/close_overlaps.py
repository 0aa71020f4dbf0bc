"""The end of an overlap: prove that the former credential is refused, then forget it."""

import asyncio
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from jelou_rotation.manifest import load
from jelou_rotation.settings import Settings
from tasks.cancellation import left_at_sigterm
from tasks.progress import shown_progress
from tasks.projects import close_projects, in_batches
from tasks.runs import CLOSE_OVERLAPS, last_state, name_close, open_run, publish_report, refusals_in_words


@flow(name="close-overlaps", flow_run_name=name_close, persist_result=False)
@refusals_in_words
async def close_overlaps(
    manifest: str,
    only: list[str] = [],  # noqa: B006 - not None: the form would hide the list behind a tab; nobody changes it
) -> State[Any]:
    """
    Retire each former credential whose overlap is over, once the receiver refuses it; Jelou is not asked.

    Args:
        manifest: Where the manifest is: a path on the worker, a URL (https, s3, gs, ...), or its text pasted here.
        only: Projects to work on, each a projectId or tag:NAME. Empty: the whole manifest.

    """
    settings = Settings.load()
    source = await asyncio.to_thread(load, manifest, allow_private_hosts=settings.allow_private_hosts)
    chosen = source.select(only)
    async with open_run(settings, chosen.rows, plan_only=False) as rotation:
        try:
            async with left_at_sigterm(), shown_progress(rotation):
                await in_batches(close_projects, rotation, [row.project_id for row in chosen.rows])
        finally:
            # Also when the run is cancelled or breaks: what was done by then must be known.
            report = await publish_report(rotation, chosen, CLOSE_OVERLAPS, settings)
    return await last_state(report)
