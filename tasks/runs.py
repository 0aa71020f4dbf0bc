"""How a run begins and what holds it together: its name, its projects, its orders, its refusals."""

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from enum import StrEnum
from functools import wraps
from typing import Any, ParamSpec

from prefect import runtime
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.states import Cancelled, Failed

from jelou_rotation.errors import Busy, Fault, RefusedInput, SettingsError
from jelou_rotation.life import Life
from jelou_rotation.manifest import Manifest, display_name, load
from jelou_rotation.parts import Part
from jelou_rotation.references import local_handlers
from jelou_rotation.report_markdown import counted
from jelou_rotation.rotation import NO_ORDERS, Rotation, open_rotation
from jelou_rotation.row import Row
from jelou_rotation.settings import Settings
from jelou_rotation.work import Orders, Work
from tasks.cancellation import left_at_sigterm
from tasks.progress import shown_progress
from tasks.secret_blocks import read_secret_block, write_secret_block

P = ParamSpec("P")


class Mode(StrEnum):
    """What a run may do."""

    PLAN = "plan"
    ROTATE = "rotate"


CLOSE_OVERLAPS = "close-overlaps"
ONBOARD = "onboard"
SIGNING_SECRETS = "signing-secrets"
AUDIT = "audit"


def named(verb: str | None = None) -> Callable[[], str]:
    """`rotate customers.yaml`: the run's mode, or the verb where there is only one, and the manifest."""

    def name() -> str:
        parameters = runtime.flow_run.parameters
        return f"{verb or Mode(parameters['mode'])} {display_name(parameters['manifest'])}"

    return name


async def choose(settings: Settings, manifest: str, only: Sequence[str], part: Part | None = None) -> Manifest:
    """The projects of this run. Their number, or that of its part, it then has in its name. Raises ManifestError."""
    whole = await asyncio.to_thread(load, manifest, allow_private_hosts=settings.allow_private_hosts)
    chosen = whole.select(only)
    worked_on = part.of(chosen) if part else chosen
    async with get_client() as client:
        name = f"{runtime.flow_run.name}, {counted(len(worked_on.rows), 'project')}"
        await client.update_flow_run(runtime.flow_run.id, name=f"{name}, {part.name}" if part else name)
    return chosen


def refusals_in_words(runbook: Callable[P, Awaitable[State[Any]]]) -> Callable[P, Awaitable[State[Any]]]:
    """
    A refusal ends the run with its faults as the message, instead of with a stack trace.

    Failed, or Cancelled where another run is at work: that one does what this one was to do.
    """

    @wraps(runbook)
    async def run(*args: P.args, **kwargs: P.kwargs) -> State[Any]:
        try:
            return await runbook(*args, **kwargs)
        except RefusedInput as refusal:
            end = Cancelled if isinstance(refusal, Busy) else Failed
            return end(message=f"Refused, nothing was sent. {refusal}", data=refusal)

    return run


@asynccontextmanager
async def at_work(rotation: Rotation) -> AsyncIterator[None]:
    """Progress is shown, SIGTERM ends the block, and after a refusal each row says why it was not begun."""
    try:
        async with left_at_sigterm(), shown_progress(rotation):
            _collect_garbage_less_often()
            yield
    except RefusedInput as refusal:
        rotation.stop(str(refusal).partition("\n")[0], "See the run's last state for the numbers and the way on.")
        raise


def give_orders(
    manifest: Manifest, only: Sequence[str], *, leaked: bool, overwrite_drift: Sequence[str], end_overlap: Sequence[str]
) -> Orders:
    """Raises RefusedInput for an order that names nobody, or everybody by mistake."""
    if leaked and not only:
        raise SettingsError([Fault("leaked", "name the projects whose credentials leaked, with only")])
    manifest.require([*overwrite_drift, *end_overlap])
    return Orders(leaked, frozenset(map(str.strip, overwrite_drift)), frozenset(map(str.strip, end_overlap)))


def _collect_garbage_less_often() -> None:
    """A run makes millions of objects that die young; at Python's usual pace that costs a tenth of it (measured)."""
    gc.set_threshold(50_000, 20, 100)
    gc.enable()


def require_selection(only: Sequence[str]) -> None:
    """The form asks for it too, unless somebody has switched that off. Raises SettingsError."""
    if not any(map(str.strip, only)):
        raise SettingsError([Fault("only", "name the projects: their former signing secrets are dead at once")])


def open_run(  # noqa: PLR0913 - what a run is made of
    settings: Settings,
    rows: Sequence[Row],
    *,
    plan_only: bool = False,
    orders: Orders = NO_ORDERS,
    kind: type[Work] = Life,
    max_failures: int | None = None,
    part: Part | None = None,
) -> AbstractAsyncContextManager[Rotation]:
    """A rotation that reads and writes Prefect's blocks; the records know it by its run, that of all its parts."""
    handlers = local_handlers(allow_readable_files=settings.allow_readable_files) | {"block": read_secret_block}
    return open_rotation(
        settings,
        rows,
        handlers,
        plan_only=plan_only,
        run_id=part.run_id if part else str(runtime.flow_run.id),
        publish=write_secret_block,
        orders=orders,
        kind=kind,
        max_failures=max_failures,
        holder=part.holder if part else "",
    )
