"""The end of an overlap: prove that the former credential is refused, then forget it."""

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from jelou_rotation.overlaps import Overlap
from jelou_rotation.settings import Settings
from tasks.lock import one_run_at_a_time
from tasks.projects import close_projects, in_batches
from tasks.reports import last_state, publish_report
from tasks.runs import CLOSE_OVERLAPS, at_work, choose, named, open_run, refusals_in_words


@flow(name="close-overlaps", flow_run_name=named(CLOSE_OVERLAPS), persist_result=False)
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
    chosen = await choose(settings, manifest, only)
    async with open_run(settings, chosen.rows, kind=Overlap) as rotation:
        try:
            async with at_work(rotation), one_run_at_a_time():
                await in_batches(close_projects, rotation, rotation.project_ids)
        finally:
            # Also when the run is cancelled or breaks: what was done by then must be known.
            report = await publish_report(rotation, chosen, CLOSE_OVERLAPS, settings)
    return await last_state(report)
