"""The rotation: read the manifest, plan, rotate, verify, report."""

import asyncio
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from jelou_rotation.manifest import load
from jelou_rotation.settings import Settings
from tasks.cancellation import left_at_sigterm
from tasks.progress import shown_progress
from tasks.projects import in_batches, plan_projects, rotate_projects
from tasks.runs import Mode, give_orders, last_state, name_run, open_run, publish_report, refusals_in_words


@flow(name="rotate-credentials", flow_run_name=name_run, persist_result=False)
@refusals_in_words
async def rotate_credentials(
    manifest: str,
    mode: Mode = Mode.PLAN,
    only: list[str] = [],  # noqa: B006 - not None: the form would hide the list behind a tab; nobody changes it
    leaked: bool = False,
    overwrite_drift: list[str] = [],  # noqa: B006 - as above
    end_overlap: list[str] = [],  # noqa: B006 - as above
) -> State[Any]:
    """
    Bring each project's integration in line with the manifest, rotate its credential and verify the result.

    Args:
        manifest: Where the manifest is: a path on the worker, a URL (https, s3, gs, ...), or its text pasted here.
        mode: plan shows what would change and writes nothing; rotate does it.
        only: Projects to work on, each a projectId or tag:NAME. Empty: the whole manifest.
        leaked: The credentials are known to others: rotate now, due or not, and keep no overlap.
        overwrite_drift: Projects that may be written over somebody else's change, each a projectId.
        end_overlap: Projects that may be rotated again in the middle of an open overlap, each a projectId.

    """
    settings = Settings.load()
    source = await asyncio.to_thread(load, manifest, allow_private_hosts=settings.allow_private_hosts)
    chosen = source.select(only)
    orders = give_orders(chosen, only, leaked=leaked, overwrite_drift=overwrite_drift, end_overlap=end_overlap)
    async with open_run(settings, chosen.rows, plan_only=mode is Mode.PLAN, orders=orders) as rotation:
        try:
            async with left_at_sigterm(), shown_progress(rotation):
                await in_batches(plan_projects, rotation, [row.project_id for row in chosen.rows])
                if mode is Mode.ROTATE:
                    await in_batches(rotate_projects, rotation, rotation.to_apply())
        finally:
            # Also when the run is cancelled or breaks: what was done by then must be known.
            report = await publish_report(rotation, chosen, mode, settings)
    return await last_state(report)
