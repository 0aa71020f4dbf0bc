"""What a run leaves behind: its report, its event, its last state."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import runtime
from prefect.artifacts import acreate_markdown_artifact, acreate_table_artifact
from prefect.client.schemas.objects import State
from prefect.context import get_run_context
from prefect.logging import get_run_logger
from prefect.settings import PREFECT_UI_URL
from prefect.states import Cancelled, Completed, Failed

from jelou_rotation import __version__
from jelou_rotation.manifest import Manifest
from jelou_rotation.report import Report, RowsNeedAttention, RunInfo, markdown, write
from jelou_rotation.rotation import Rotation
from jelou_rotation.settings import Settings
from tasks.approval import publish_plan
from tasks.cancellation import is_being_cancelled
from tasks.events import tell
from tasks.runs import Mode

REPORT_KEY = "jelou-rotation-report"
ROWS_KEY = "jelou-rotation-rows"


def report_folder(settings: Settings, run: RunInfo) -> Path:
    """Where the files of a run's report are."""
    return settings.report_dir / f"{run.started_at:%Y%m%d-%H%M%S}-{run.mode}-{run.id[:8]}"


async def publish_report(rotation: Rotation, manifest: Manifest, mode: str, settings: Settings) -> Report:
    """
    Write the report's files, the artifacts `jelou-rotation-report` and `jelou-rotation-rows`, and the run's event.

    A plan is kept too, so that it can be approved by its hash.
    """
    plan = await publish_plan(rotation) if mode == Mode.PLAN else None
    run = RunInfo(
        id=runtime.flow_run.id,
        mode=mode,
        manifest=manifest.name,
        manifest_sha256=manifest.sha256,
        started_at=get_run_context().start_time,
        finished_at=datetime.now(UTC),
        version=__version__,
        plan=plan,
        timeline=tuple(rotation.timeline),
    )
    report = Report(run, tuple(rotation.results()), rotation.requests)
    folder = report_folder(settings, run)
    write(report, folder, rotation.to_run_again())
    get_run_logger().info("%s The report is in %s", report.headline(), folder)
    page = await acreate_markdown_artifact(markdown(report), key=REPORT_KEY, description=report.headline())
    await acreate_table_artifact(report.table(), key=ROWS_KEY, description=f"Every project of {manifest.name}")
    if address := _address(page):
        get_run_logger().info("It can be read at %s", address)
    tell(report)
    return report


async def last_state(report: Report) -> State[Any]:
    """Completed with the report when every row is as wanted, else Failed; the message says it in words."""
    if await is_being_cancelled():
        return Cancelled(message=report.headline(), data=RowsNeedAttention(report))
    if report.needs_attention:
        return Failed(message=report.headline(), data=RowsNeedAttention(report))
    return Completed(message=report.headline(), data=report)


def _address(artifact: UUID) -> str | None:
    """Where the UI shows an artifact; a temporary server has none."""
    ui = PREFECT_UI_URL.value()
    return f"{ui}/artifacts/artifact/{artifact}" if ui else None
