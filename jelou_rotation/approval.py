"""The plan as a person approves it: a short hash of what would be done, and what has changed since."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from operator import itemgetter

from jelou_rotation.outcomes import Outcome
from jelou_rotation.report_markdown import changes_text, code, escape, table
from jelou_rotation.work import Work

HASH_LENGTH = 12
_MOST_DIFFERENCES = 20
_MOST_SHOWN = 50


@dataclass(frozen=True, slots=True)
class PlannedRow:
    """
    What a plan says of one project, without a secret: `outcome` is planned where something would be sent.

    `manifest` and `jelou` are digests of its row in the manifest and of the integration as Jelou told it.
    """

    project_id: str
    outcome: str
    changes: str
    manifest: str
    jelou: str


def planned_row(work: Work) -> PlannedRow:
    plan = work.plan_made
    result = work.standing(plan_only=True, stopped_by=None)
    seen = (plan.seen.webhook_url, plan.seen.auth_type, str(plan.seen.updated_at)) if plan else ()
    is_open = result.outcome is Outcome.PLANNED
    return PlannedRow(
        work.row.project_id,
        result.outcome,
        "; ".join(changes_text(result)) if is_open else "",
        _digest(work.row.model_dump_json()) if is_open else "",
        _digest(json.dumps(seen)) if is_open else "",
    )


def plan_hash(rows: Sequence[PlannedRow]) -> str:
    """Twelve hexadecimal digits; the same only for the same projects, rows, integrations and changes."""
    return _digest(json.dumps(sorted((asdict(row) for row in rows), key=itemgetter("project_id"))))


def plan_table(rows: Sequence[PlannedRow]) -> str:
    """The changes as a Markdown table, the first fifty of them."""
    planned = [row for row in rows if row.outcome == Outcome.PLANNED]
    shown = [(code(row.project_id), escape(row.changes)) for row in planned[:_MOST_SHOWN]]
    left = len(planned) - len(shown)
    more = f"\n\nand {left:,} more, in the artifact" if left else ""
    return table(("Project", "Changes"), shown) + more


def differences(approved: Sequence[Mapping[str, str]], now: Sequence[PlannedRow]) -> list[str]:
    """In words, one project a line; `approved` are rows of the former plan as `asdict` wrote them."""
    found = list(_differences({row["project_id"]: row for row in approved}, {row.project_id: row for row in now}))
    left = len(found) - _MOST_DIFFERENCES
    return [*found[:_MOST_DIFFERENCES], *([f"and {left:,} more"] if left > 0 else [])]


def _differences(former: Mapping[str, Mapping[str, str]], now: Mapping[str, PlannedRow]) -> Iterator[str]:
    for project_id in former:
        if project_id not in now:
            yield f"{project_id}: is no longer among the projects"
    for project_id, row in now.items():
        if project_id not in former:
            yield f"{project_id}: was not among the projects"
        elif asdict(row) != former[project_id]:
            yield f"{project_id}: {_difference(former[project_id], row)}"


def _difference(former: Mapping[str, str], row: PlannedRow) -> str:
    if former["outcome"] != row.outcome:
        return f"was {former['outcome']}, is {row.outcome}".replace("_", " ")
    if former["changes"] != row.changes:
        return f"the approved change is {former['changes']}; now it would be {row.changes}"
    if former["manifest"] != row.manifest:
        return "its row in the manifest changed"
    return "somebody changed the integration at Jelou"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_LENGTH]
