"""What a run says of itself: its name, its report, its last state."""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from enum import StrEnum
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

from prefect import runtime
from prefect.artifacts import acreate_markdown_artifact, acreate_table_artifact
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.states import Cancelled, Completed, Failed

from jelou_rotation import __version__
from jelou_rotation.errors import Fault, RefusedInput, SettingsError
from jelou_rotation.life import Orders
from jelou_rotation.manifest import Manifest, display_name
from jelou_rotation.references import local_handlers
from jelou_rotation.report import Report, RowsNeedAttention, RunInfo, markdown, write
from jelou_rotation.rotation import NO_ORDERS, Rotation, open_rotation
from jelou_rotation.row import Row
from jelou_rotation.settings import Settings
from tasks.cancellation import is_being_cancelled
from tasks.secret_blocks import read_secret_block, write_secret_block

REPORT_KEY = "jelou-rotation-report"
ROWS_KEY = "jelou-rotation-rows"

P = ParamSpec("P")


class Mode(StrEnum):
    """What a run may do."""

    PLAN = "plan"
    ROTATE = "rotate"


CLOSE_OVERLAPS = "close-overlaps"


def name_run() -> str:
    """`plan customers.yaml`."""
    parameters = runtime.flow_run.parameters
    return f"{Mode(parameters['mode'])} {display_name(parameters['manifest'])}"


def name_close() -> str:
    """`close-overlaps customers.yaml`."""
    return f"{CLOSE_OVERLAPS} {display_name(runtime.flow_run.parameters['manifest'])}"


def refusals_in_words(runbook: Callable[P, Awaitable[State[Any]]]) -> Callable[P, Awaitable[State[Any]]]:
    """Bad input ends the run Failed with its faults as the message, instead of with a stack trace."""

    @wraps(runbook)
    async def run(*args: P.args, **kwargs: P.kwargs) -> State[Any]:
        try:
            return await runbook(*args, **kwargs)
        except RefusedInput as refusal:
            return Failed(message=f"Refused, nothing was sent. {refusal}", data=refusal)

    return run


def give_orders(
    manifest: Manifest, only: Sequence[str], *, leaked: bool, overwrite_drift: Sequence[str], end_overlap: Sequence[str]
) -> Orders:
    """Raises RefusedInput for an order that names nobody, or everybody by mistake."""
    if leaked and not only:
        raise SettingsError([Fault("leaked", "name the projects whose credentials leaked, with only")])
    manifest.require([*overwrite_drift, *end_overlap])
    return Orders(leaked, frozenset(map(str.strip, overwrite_drift)), frozenset(map(str.strip, end_overlap)))


def open_run(
    settings: Settings, rows: Sequence[Row], *, plan_only: bool, orders: Orders = NO_ORDERS
) -> AbstractAsyncContextManager[Rotation]:
    """A rotation that reads and writes Prefect's blocks and is known in the records by this flow run."""
    handlers = local_handlers(allow_readable_files=settings.allow_readable_files) | {"block": read_secret_block}
    return open_rotation(
        settings,
        rows,
        handlers,
        plan_only=plan_only,
        run_id=str(runtime.flow_run.id),
        publish=write_secret_block,
        orders=orders,
    )


def report_folder(settings: Settings, run: RunInfo) -> Path:
    """Where the files of a run's report are."""
    return settings.report_dir / f"{run.started_at:%Y%m%d-%H%M%S}-{run.mode}-{run.id[:8]}"


async def publish_report(rotation: Rotation, manifest: Manifest, mode: str, settings: Settings) -> Report:
    """Write the report's files, then the artifacts `jelou-rotation-report` and `jelou-rotation-rows`."""
    run = RunInfo(
        id=runtime.flow_run.id,
        mode=mode,
        manifest=manifest.name,
        manifest_sha256=manifest.sha256,
        started_at=runtime.flow_run.scheduled_start_time,
        finished_at=datetime.now(UTC),
        version=__version__,
    )
    report = Report(run, tuple(rotation.results()), rotation.requests)
    folder = report_folder(settings, run)
    write(report, folder, rotation.to_run_again())
    get_run_logger().info("%s The report is in %s", report.headline(), folder)
    await acreate_markdown_artifact(markdown(report), key=REPORT_KEY, description=report.headline())
    await acreate_table_artifact(report.table(), key=ROWS_KEY, description=f"Every project of {manifest.name}")
    return report


async def last_state(report: Report) -> State[Any]:
    """Completed with the report when every row is as wanted, else Failed; the message says it in words."""
    if await is_being_cancelled():
        return Cancelled(message=report.headline(), data=RowsNeedAttention(report))
    if report.needs_attention:
        return Failed(message=report.headline(), data=RowsNeedAttention(report))
    return Completed(message=report.headline(), data=report)
