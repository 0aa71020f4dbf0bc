"""The rotation: read the manifest, plan, rotate, verify, report."""

from typing import Annotated, Any

from prefect import flow
from prefect.client.schemas.objects import State
from pydantic import Field

from jelou_rotation.limits import Amount, Limits, RampStep
from jelou_rotation.parts import Part
from jelou_rotation.settings import Settings
from tasks.approval import Approval, approve
from tasks.lock import one_run_at_a_time
from tasks.projects import plan_all
from tasks.ramp import in_steps
from tasks.reports import last_state, publish_report
from tasks.runs import Mode, at_work, choose, give_orders, named, open_run, refusals_in_words
from tasks.shards import check_shards, in_shards, rotate_part


@flow(name="rotate-credentials", flow_run_name=named(), persist_result=False)
@refusals_in_words
async def rotate_credentials(
    manifest: str,
    mode: Mode = Mode.PLAN,
    only: list[str] = [],  # noqa: B006 - not None: the form would hide the list behind a tab; nobody changes it
    approval: Approval = Approval.NONE,
    approve_above: Annotated[int, Field(ge=0, le=1_000_000)] = 0,
    approved_plan: str = "",
    leaked: bool = False,
    overwrite_drift: list[str] = [],  # noqa: B006 - as above
    end_overlap: list[str] = [],  # noqa: B006 - as above
    max_changes: Amount = "",
    max_host_changes: Amount = "10",
    max_downgrades: Amount = "0",
    max_failures: Amount = "",
    ramp: list[RampStep] = [],  # noqa: B006 - as above
    ramp_pause: Annotated[float, Field(ge=0, le=1440)] = 5,
    shards: Annotated[int, Field(ge=1, le=100)] = 1,
    part: str = "",
) -> State[Any]:
    """
    Bring each project's integration in line with the manifest, rotate its credential and verify the result.

    Args:
        manifest: Where the manifest is: a path on the worker, a URL (https, s3, gs, ...), or its text pasted here.
        mode: plan only shows what would change; rotate does it.
        only: Projects to work on, each a projectId or tag:NAME. Empty: the whole manifest.
        approval: In mode rotate, pause shows the plan and waits up to an hour for a person to resume the run.
        approve_above: With approval pause, ask only when more projects than this would change.
        approved_plan: The hash a plan run ended with. Rotates only if the plan is still exactly that one.
        leaked: The credentials are known to others: rotate now, due or not, and keep no overlap.
        overwrite_drift: Projects that may be written over somebody else's change, each a projectId.
        end_overlap: Projects that may be rotated again in the middle of an open overlap, each a projectId.
        max_changes: The most projects that may change, as 40 or 10%. Empty: no limit.
        max_host_changes: The most webhooks that may move to another host, as 10 or 5%. Empty: no limit.
        max_downgrades: The most projects that may lose their authentication (no_auth), as 1 or 5%. Empty: no limit.
        max_failures: More failed projects than this, as 5 or 10%, and no further one is begun. Empty: no limit.
        ramp: Steps of the rotation, each 5, 10%, tag:NAME or rest. Empty: all at once.
        ramp_pause: Minutes to wait between two steps, before the first projects are looked at again.
        shards: Rotate in so many runs at once, on any workers of the pool; this one waits, and takes a slot as well.
        part: Set by a run with shards. Leave it empty.

    """
    writes = mode is Mode.ROTATE
    asks = writes and approval is Approval.PAUSE
    splits = writes and shards > 1
    settings = Settings.load()
    limits = Limits(max_changes, max_host_changes, max_downgrades, max_failures)
    mine = Part.parse(part) if part else None
    chosen = await choose(settings, manifest, only, mine)
    orders = give_orders(chosen, only, leaked=leaked, overwrite_drift=overwrite_drift, end_overlap=end_overlap)
    if mine:
        return await rotate_part(settings, mine, chosen, orders, limits)
    failures = limits.failures_allowed(len(chosen.rows))
    async with open_run(settings, chosen.rows, plan_only=not writes, orders=orders, max_failures=failures) as rotation:
        if splits:
            check_shards(rotation, ramp, approval, approved_plan)
        try:
            async with at_work(rotation), one_run_at_a_time(writes and not asks):
                if not splits or limits.need_plan(chosen.rows):
                    await plan_all(rotation)
                if writes:
                    await approve(rotation, limits, approved_plan, approval, approve_above)
                    # A run that waits for a person lets others go on meanwhile.
                    async with one_run_at_a_time(asks):
                        if splits:
                            await in_shards(rotation, chosen, limits, shards)
                        else:
                            await in_steps(rotation, ramp, ramp_pause)
        finally:
            # Also when the run is refused, is cancelled or breaks: what was done by then must be known.
            report = await publish_report(rotation, chosen, mode, settings)
    return await last_state(report)
