"""Bulk onboarding: create the integrations that are missing, bring the others in line, verify, report."""

from typing import Annotated, Any

from prefect import flow
from prefect.client.schemas.objects import State
from pydantic import Field

from jelou_rotation.limits import Amount, Limits, RampStep
from jelou_rotation.settings import Settings
from jelou_rotation.work import Orders
from tasks.approval import Approval, approve
from tasks.lock import one_run_at_a_time
from tasks.projects import plan_all
from tasks.ramp import in_steps
from tasks.reports import last_state, publish_report
from tasks.runs import ONBOARD, Mode, at_work, choose, named, open_run, refusals_in_words


@flow(name="onboard-projects", flow_run_name=named(ONBOARD), persist_result=False)
@refusals_in_words
async def onboard_projects(
    manifest: str,
    mode: Mode = Mode.PLAN,
    only: list[str] = [],  # noqa: B006 - not None: the form would hide the list behind a tab; nobody changes it
    approval: Approval = Approval.NONE,
    approve_above: Annotated[int, Field(ge=0, le=1_000_000)] = 0,
    approved_plan: str = "",
    max_changes: Amount = "",
    max_host_changes: Amount = "10",
    max_downgrades: Amount = "0",
    max_failures: Amount = "",
    ramp: list[RampStep] = [],  # noqa: B006 - as above
    ramp_pause: Annotated[float, Field(ge=0, le=1440)] = 5,
) -> State[Any]:
    """
    Create the integrations that are missing at Jelou, keep their signing secrets, and bring the others in line.

    Args:
        manifest: Where the manifest is: a path on the worker, a URL (https, s3, gs, ...), or its text pasted here.
        mode: plan only shows what would be created and changed; rotate does it.
        only: Projects to work on, each a projectId or tag:NAME. Empty: the whole manifest.
        approval: In mode rotate, pause shows the plan and waits up to an hour for a person to resume the run.
        approve_above: With approval pause, ask only when more projects than this would change.
        approved_plan: The hash a plan run ended with. Goes on only if the plan is still exactly that one.
        max_changes: The most projects that may be created or changed, as 40 or 10%. Empty: no limit.
        max_host_changes: The most webhooks that may move to another host, as 10 or 5%. Empty: no limit.
        max_downgrades: The most projects that may lose their authentication (no_auth), as 1 or 5%. Empty: no limit.
        max_failures: More failed projects than this, as 5 or 10%, and no further one is begun. Empty: no limit.
        ramp: Steps of the onboarding, each 5, 10%, tag:NAME or rest. Empty: all at once.
        ramp_pause: Minutes to wait between two steps, before the first projects are looked at again.

    """
    writes = mode is Mode.ROTATE
    asks = writes and approval is Approval.PAUSE
    settings = Settings.load()
    limits = Limits(max_changes, max_host_changes, max_downgrades, max_failures)
    chosen = await choose(settings, manifest, only)
    failures = limits.failures_allowed(len(chosen.rows))
    async with open_run(
        settings, chosen.rows, plan_only=not writes, orders=Orders(create=True), max_failures=failures
    ) as rotation:
        try:
            async with at_work(rotation), one_run_at_a_time(writes and not asks):
                await plan_all(rotation)
                if writes:
                    await approve(rotation, limits, approved_plan, approval, approve_above)
                    # A run that waits for a person lets others go on meanwhile.
                    async with one_run_at_a_time(asks):
                        await in_steps(rotation, ramp, ramp_pause)
        finally:
            # Also when the run is refused, is cancelled or breaks: what was done by then must be known.
            report = await publish_report(rotation, chosen, ONBOARD if writes else mode, settings)
    return await last_state(report)
