"""The audit: the manifest, Jelou and the record held against each other. Nothing is written."""

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from jelou_rotation.audit import Audit
from jelou_rotation.settings import Settings
from tasks.projects import audit_projects, in_batches
from tasks.reports import last_state, publish_report
from tasks.runs import AUDIT, at_work, choose, named, open_run, refusals_in_words


@flow(name="audit-integrations", flow_run_name=named(AUDIT), persist_result=False)
@refusals_in_words
async def audit_integrations(
    manifest: str,
    only: list[str] = [],  # noqa: B006 - not None: the form would hide the list behind a tab; nobody changes it
) -> State[Any]:
    """
    Find what is not as declared: drift, missing integrations, overdue rotations, overlaps, receivers that do not check.

    Args:
        manifest: Where the manifest is: a path on the worker, a URL (https, s3, gs, ...), or its text pasted here.
        only: Projects to look at, each a projectId or tag:NAME. Empty: the whole manifest.

    """
    settings = Settings.load()
    chosen = await choose(settings, manifest, only)
    async with open_run(settings, chosen.rows, plan_only=True, kind=Audit) as rotation:
        try:
            async with at_work(rotation):
                await in_batches(audit_projects, rotation, rotation.project_ids)
        finally:
            # Also when the run is cancelled or breaks: what was found by then must be known.
            report = await publish_report(rotation, chosen, AUDIT, settings)
    return await last_state(report)
