"""The rotation: read the manifest, plan, rotate, verify, report."""

import asyncio
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from jelou_rotation.manifest import load
from jelou_rotation.references import local_handlers
from jelou_rotation.rotation import open_rotation
from jelou_rotation.settings import Settings
from tasks.cancellation import left_at_sigterm
from tasks.progress import shown_progress
from tasks.projects import in_batches, plan_projects, rotate_projects
from tasks.runs import Mode, last_state, name_run, publish_report, refusals_in_words
from tasks.secret_blocks import read_secret_block


@flow(name="rotate-credentials", flow_run_name=name_run, persist_result=False)
@refusals_in_words
async def rotate_credentials(
    manifest: str,
    mode: Mode = Mode.PLAN,
    only: list[str] = [],  # noqa: B006 - not None: the form would hide the list behind a tab; nobody changes it
) -> State[Any]:
    """
    Bring each project's integration in line with the manifest, rotate its credential and verify the result.

    Args:
        manifest: Where the manifest is: a path on the worker, a URL (https, s3, gs, ...), or its text pasted here.
        mode: plan shows what would change and writes nothing; rotate does it.
        only: Projects to work on, each a projectId or tag:NAME. Empty: the whole manifest.

    """
    settings = Settings.load()
    source = await asyncio.to_thread(load, manifest, allow_private_hosts=settings.allow_private_hosts)
    chosen = source.select(only)
    handlers = local_handlers(allow_readable_files=settings.allow_readable_files) | {"block": read_secret_block}
    async with open_rotation(settings, chosen.rows, handlers, plan_only=mode is Mode.PLAN) as rotation:
        try:
            async with left_at_sigterm(), shown_progress(rotation):
                await in_batches(plan_projects, rotation, [row.project_id for row in chosen.rows])
                if mode is Mode.ROTATE:
                    await in_batches(rotate_projects, rotation, rotation.to_apply())
        finally:
            # Also when the run is cancelled or breaks: what was done by then must be known.
            report = await publish_report(rotation, chosen, mode, settings)
    return await last_state(report)
