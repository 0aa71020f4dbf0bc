"""New signing secrets, for the projects named and one at a time: the former one is dead at once."""

from typing import Annotated, Any

from prefect import flow
from prefect.client.schemas.objects import State
from pydantic import Field

from jelou_rotation.settings import Settings
from jelou_rotation.signing import SigningSecretRotation
from tasks.lock import one_run_at_a_time
from tasks.projects import one_after_the_other, plan_all, renew_signing_secrets
from tasks.reports import last_state, publish_report
from tasks.runs import SIGNING_SECRETS, Mode, at_work, choose, named, open_run, refusals_in_words, require_selection


@flow(name="rotate-signing-secrets", flow_run_name=named(SIGNING_SECRETS), persist_result=False)
@refusals_in_words
async def rotate_signing_secrets(
    manifest: str, only: Annotated[list[str], Field(min_length=1)], mode: Mode = Mode.PLAN
) -> State[Any]:
    """
    Have Jelou make a new signing secret for each project named, and keep it before anything else is done.

    Args:
        manifest: Where the manifest is: a path on the worker, a URL (https, s3, gs, ...), or its text pasted here.
        only: The projects, each a projectId or tag:NAME. They must be named: the former secrets are dead at once.
        mode: plan shows whose secret would be replaced and writes nothing; rotate does it, one project at a time.

    """
    writes = mode is Mode.ROTATE
    settings = Settings.load()
    require_selection(only)
    chosen = await choose(settings, manifest, only)
    async with open_run(
        settings, chosen.rows, plan_only=not writes, kind=SigningSecretRotation, max_failures=0
    ) as rotation:
        try:
            async with at_work(rotation), one_run_at_a_time(writes):
                await plan_all(rotation)
                if writes:
                    await one_after_the_other(renew_signing_secrets, rotation, rotation.to_apply())
        finally:
            # Also when the run is refused, is cancelled or breaks: what was done by then must be known.
            report = await publish_report(rotation, chosen, SIGNING_SECRETS if writes else mode, settings)
    return await last_state(report)
