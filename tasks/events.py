"""What a run tells the Prefect server's automations; no event holds more than numbers and names."""

from datetime import UTC, datetime, timedelta

from prefect import runtime
from prefect.context import FlowRunContext
from prefect.events import emit_event

from jelou_rotation.report import Report
from jelou_rotation.report_markdown import by_outcome

ENDING_WITHIN = timedelta(hours=2)


def tell(report: Report) -> None:
    """`jelou-rotation.run.finished`, and `jelou-rotation.overlap.ending` while one ends within two hours."""
    deployment = _deployment()
    counts = {outcome.value: count for outcome, count in by_outcome(report.results).items()}
    emit_event(
        "jelou-rotation.run.finished",
        {
            "prefect.resource.id": f"jelou-rotation.deployment.{deployment}",
            "prefect.resource.name": deployment,
            "mode": report.run.mode,
        },
        payload={"headline": report.headline(), "outcomes": counts},
    )
    now = datetime.now(UTC)
    if ending := [row for row in report.results if row.overlap_until and now < row.overlap_until < now + ENDING_WITHIN]:
        emit_event(
            "jelou-rotation.overlap.ending",
            {"prefect.resource.id": "jelou-rotation.overlaps", "prefect.resource.name": "overlaps"},
            payload={"projects": len(ending), "first": ending[0].project_id},
        )


def _deployment() -> str:
    context = FlowRunContext.get()
    if not context or not context.flow_run or not context.flow_run.deployment_id:
        # Prefect's runtime would ask the server, and everything waits for its answer.
        return "none"
    return runtime.deployment.name or "none"
