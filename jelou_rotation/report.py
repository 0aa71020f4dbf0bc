"""
What happened in a run: `report.json` for programs, Markdown, CSV, a terminal text and one sentence for people.

JSON is exact. Every other form shows what came from a manifest or a server as text that cannot act.
"""

import csv
import io
import json
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from jelou_rotation.errors import JelouRotationError
from jelou_rotation.manifest import dump
from jelou_rotation.outcomes import Moment, Outcome, RowResult
from jelou_rotation.report_markdown import (
    all_projects,
    attention,
    by_evidence,
    by_outcome,
    changes_text,
    code,
    counted,
    escape,
    evidence_text,
    open_overlaps,
    outcome_image,
    proofs,
    table,
    tally,
    unconfirmed_text,
    unproven,
    visible,
)
from jelou_rotation.row import Row

# More rows than this scroll off a terminal: there only those that need attention are listed.
MOST_TERMINAL_ROWS = 60

# What a spreadsheet takes for a formula, also behind spaces and quotes and in full width (OWASP, CSV injection).
_FORMULA = re.compile(r"""[\s"']*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]""")
_CSV_COLUMNS = (
    "projectId",
    "outcome",
    "evidence",
    "changes",
    "attempts",
    "unconfirmed",
    "error",
    "advice",
    "notes",
    "overlapUntil",
)


@dataclass(frozen=True, slots=True)
class RunInfo:
    """
    One run: `mode` is plan, rotate, onboard, close-overlaps, signing-secrets or audit; the times are in UTC.

    `manifest` is the name to show, `plan` the hash by which a plan is approved, `timeline` what happened when.
    """

    id: str
    mode: str
    manifest: str
    manifest_sha256: str
    started_at: datetime
    finished_at: datetime
    version: str
    plan: str | None = None
    timeline: tuple[Moment, ...] = ()

    @property
    def is_plan(self) -> bool:
        return self.mode == "plan"

    @property
    def seconds(self) -> float:
        return round((self.finished_at - self.started_at).total_seconds(), 3)


class Report:
    """`requests` counts what was sent by method, and the `retries` and `pauses`."""

    # No dataclass: Prefect would look through every field of every row of it for futures.
    def __init__(self, run: RunInfo, results: tuple[RowResult, ...], requests: Mapping[str, int]) -> None:
        self.run = run
        self.results = results
        self.requests = requests

    @property
    def needs_attention(self) -> tuple[RowResult, ...]:
        return tuple(result for result in self.results if not result.outcome.is_as_wanted)

    def headline(self) -> str:
        """The run in one sentence."""
        if not self.results:
            return "No projects: nothing to do."
        total = counted(len(self.results), "project")
        if troubled := self.needs_attention:
            need = "needs" if len(troubled) == 1 else "need"
            intended = f"; {self._intended()}" if self.run.is_plan and len(troubled) < len(self.results) else ""
            return f"{len(troubled):,} of {total} {need} attention: {tally(by_outcome(troubled))}{intended}."
        if self.run.is_plan:
            return f"{total}: {self._intended()}."
        subject = f"{total} is" if len(self.results) == 1 else f"All {total} are"
        return f"{subject} as wanted: {tally(by_outcome(self.results))}."

    def effort(self) -> str:
        """What the run took, in one sentence."""
        return f"It took {_duration(self.run.seconds)} and {_requests(self)}."

    def as_json(self) -> dict[str, Any]:
        """The content of report.json."""
        return {
            "schemaVersion": 1,
            "run": {
                "id": self.run.id,
                "mode": self.run.mode,
                "manifest": self.run.manifest,
                "manifestSha256": self.run.manifest_sha256,
                "startedAt": _timestamp(self.run.started_at),
                "finishedAt": _timestamp(self.run.finished_at),
                "version": self.run.version,
                "plan": self.run.plan,
                "timeline": [{"at": _timestamp(moment.at), "text": moment.text} for moment in self.run.timeline],
            },
            "summary": {
                "total": len(self.results),
                "byOutcome": {outcome.value: count for outcome, count in by_outcome(self.results).items()},
                "byEvidence": {evidence.value: count for evidence, count in by_evidence(self.results).items()},
                "requests": dict(self.requests),
                "durationSeconds": self.run.seconds,
            },
            "projects": [_project(result) for result in self.results],
        }

    def table(self) -> list[dict[str, Any]]:
        """One row a project for Prefect's table artifact, which shows every cell as plain text."""
        return [
            {
                "projectId": visible(result.project_id),
                "outcome": result.outcome.value,
                "evidence": evidence_text(result),
                "changes": _changes(result),
                "attempts": result.attempts,
                "error": visible(result.error or ""),
            }
            for result in self.results
        ]

    def _intended(self) -> str:
        wanted = [result.outcome for result in self.results if result.outcome.is_as_wanted]
        changing = wanted.count(Outcome.PLANNED)
        already = len(wanted) - changing
        parts = [
            f"{changing:,} would change" if changing else "",
            f"{already:,} {'is' if already == 1 else 'are'} already so" if already else "",
        ]
        return ", ".join(filter(None, parts))


class RowsNeedAttention(JelouRotationError):
    """The run finished and some rows are not as wanted; `report` says which, why, and what to do."""

    def __init__(self, report: Report) -> None:
        super().__init__(report.headline())
        self.report = report


def write(report: Report, directory: Path, retry_rows: Iterable[Row]) -> None:
    """
    report.json, report.md, report.csv and, when there are rows to run again, retry.yaml.

    Each file appears whole or not at all; a retry.yaml of an earlier run does not stay behind.
    """
    directory.mkdir(parents=True, exist_ok=True)
    # Escaped to ASCII, JSON holds any text exactly, half of a surrogate pair too.
    _replace(directory / "report.json", json.dumps(report.as_json(), indent=2) + "\n")
    _replace(directory / "report.md", markdown(report))
    # Excel takes UTF-8 without a byte order mark for the local 8-bit encoding; programs have report.json.
    _replace(directory / "report.csv", "\N{ZERO WIDTH NO-BREAK SPACE}" + _csv(report.results))
    if rows := tuple(retry_rows):
        _replace(directory / "retry.yaml", dump(rows))
    else:
        (directory / "retry.yaml").unlink(missing_ok=True)


def markdown(report: Report) -> str:
    """The text of report.md and of the Markdown artifact; stays small however many rows there are."""
    sections = [
        f"# {report.run.mode.capitalize()}: {code(report.run.manifest)}",
        report.headline(),
        outcome_image(by_outcome(report.results)) if report.results else "",
        _facts(report),
        _section("What to do next", _next_steps(report) if report.results else ""),
        _section("What needs attention", attention(report.needs_attention)),
        _section("What was proven", proofs(report.results)),
        _section("What could not be proven", unproven(report.results)),
        _section("Open overlaps", open_overlaps(report.results)),
        _section("Time line", _timeline(report.run) if report.results else ""),
        _section("All projects", all_projects(report.results, plan=report.run.is_plan) if report.results else ""),
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def summary_text(report: Report, *, width: int) -> str:
    """The run for a terminal `width` columns wide, without colours."""
    whole = len(report.results) <= MOST_TERMINAL_ROWS
    shown = report.results if whole else report.needs_attention[:MOST_TERMINAL_ROWS]
    lines = list(_terminal_rows(shown, width))
    if lines:
        lines.append("")
    if not whole:
        left = len(report.needs_attention) - len(shown)
        if left:
            lines.append(f"and {left:,} more, see report.csv")
        lines.append(tally(by_outcome(report.results)))
    return "\n".join([*lines, report.headline()])


def _terminal_rows(results: Sequence[RowResult], width: int) -> Iterator[str]:
    cells = [(visible(result.project_id), result.outcome, result.evidence or "") for result in results]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for result, row in zip(results, cells, strict=True):
        padded = (cell.ljust(size) for cell, size in zip(row, widths, strict=True) if size)
        yield from _terminal_row(result, "  ".join(padded), width)


def _terminal_row(result: RowResult, start: str, width: int) -> Iterator[str]:
    """On one line where it fits; what would change is never clipped."""
    notes = [*changes_text(result), *unconfirmed_text(result)]
    line = "  ".join([start, "; ".join(notes)]).rstrip()
    if len(line) <= width:
        yield line
    else:
        yield start.rstrip()
        yield from (f"    {note}" for note in notes)
    for note in result.notes:
        yield from _indented(visible(note), width)
    if not result.outcome.is_as_wanted:
        for sentence in filter(None, (result.error, result.advice)):
            yield from _indented(visible(sentence), width)


def _indented(text: str, width: int) -> list[str]:
    return textwrap.wrap(
        text,
        max(width, 40),
        initial_indent=" " * 4,
        subsequent_indent=" " * 4,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _project(result: RowResult) -> dict[str, Any]:
    return {
        "projectId": result.project_id,
        "outcome": result.outcome.value,
        "evidence": result.evidence.value if result.evidence else None,
        "changes": [
            {
                "field": change.field,
                "before": change.before,
                "after": change.after,
                "canBeUndone": change.can_be_undone,
            }
            for change in result.changes
        ],
        "attempts": result.attempts,
        "unconfirmed": list(result.unconfirmed),
        "error": result.error,
        "advice": result.advice,
        "notes": list(result.notes),
        "overlapUntil": _timestamp(result.overlap_until) if result.overlap_until else None,
    }


def _csv(results: Iterable[RowResult]) -> str:
    """As RFC 4180 says; every cell quoted, because a spreadsheet may split at another sign than the comma."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\r\n")
    writer.writerow(_CSV_COLUMNS)
    for result in results:
        writer.writerow(map(_cell, _csv_row(result)))
    return text.getvalue()


def _csv_row(result: RowResult) -> tuple[str, ...]:
    return (
        result.project_id,
        result.outcome,
        result.evidence or "",
        _changes(result),
        str(result.attempts),
        ", ".join(result.unconfirmed),
        result.error or "",
        result.advice or "",
        "; ".join(result.notes),
        _timestamp(result.overlap_until) if result.overlap_until else "",
    )


def _cell(text: str) -> str:
    return visible(f"'{text}" if _FORMULA.match(text) else text)


def _changes(result: RowResult) -> str:
    return "; ".join(changes_text(result))


def _section(title: str, body: str) -> str:
    return f"## {title}\n\n{body}" if body else ""


def _facts(report: Report) -> str:
    run = report.run
    return table(
        ("Run", code(run.id)),
        [
            ("Started", f"{run.started_at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"),
            ("Took", _duration(run.seconds)),
            ("Requests", _requests(report)),
            ("Manifest SHA-256", code(run.manifest_sha256[:12])),
            ("Version", code(run.version)),
        ],
    )


def _next_steps(report: Report) -> str:
    """What a person does with this report, as a list."""
    run, troubled = report.run, report.needs_attention
    steps = []
    if troubled:
        steps.append(
            "Do what is said below, then run `retry.yaml` of the report folder: it holds the rows that are left."
        )
    if run.plan and any(result.outcome is Outcome.PLANNED for result in report.results):
        steps.append(f"To do exactly this, run mode rotate with `approved_plan` set to `{run.plan}`.")
    if not run.is_plan and any(result.overlap_until for result in report.results):
        steps.append(
            "Let the receivers accept both credentials until their overlap ends; close-overlaps then retires them."
        )
    return "\n".join(f"- {step}" for step in steps) or "Nothing."


def _timeline(run: RunInfo) -> str:
    moments = [Moment(run.started_at, "started"), *run.timeline, Moment(run.finished_at, "finished")]
    rows = [(f"{moment.at.astimezone(UTC):%H:%M:%S}", escape(moment.text)) for moment in moments]
    return table(("UTC", "What happened"), rows)


def _requests(report: Report) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in report.requests.items()) or "no requests"


def _duration(seconds: float) -> str:
    """The two largest units: `1 hour 2 minutes`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    units = {"hour": hours, "minute": minutes, "second": rest}
    words = [counted(count, unit) for unit, count in units.items() if count]
    return " ".join(words[:2]) or "less than a second"


def _timestamp(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _replace(path: Path, text: str) -> None:
    """Written beside its place first: a reader sees the former file or the whole new one."""
    unfinished = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        unfinished.write_bytes(text.encode())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
