"""
The parts a report is drawn from: its words, its Markdown, and the bar of outcomes as SVG.

Whatever comes from a manifest or a server is untrusted: it passes `visible`, `escape` or `code` before it is shown.
"""

import base64
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from jelou_rotation.outcomes import Evidence, Outcome, RowResult
from jelou_rotation.plan import Change

# A Markdown artifact of several megabytes hangs the Prefect UI for minutes: it stays a summary.
MOST_ROWS = 500
MOST_UNFOLDED = 20
MOST_CHARACTERS = 200_000
MOST_GROUPS = 100
MOST_PROJECTS_OF_A_GROUP = 10
LONGEST_VALUE = 120
LONGEST_SENTENCE = 500

_PROVEN = {
    Evidence.ACCEPTED: "Jelou took the request. Not proven: anything about the value.",
    Evidence.ECHOED: "Jelou's answer carries what was sent, so this row was written. Not proven: which credential.",
    Evidence.READ_BACK: (
        "a separate GET shows what was wanted, so it persisted and nobody wrote after us. Not proven: which credential."
    ),
    Evidence.RECEIVER_CHECKED: (
        "the receiver accepts the new credential and refuses a random one. Not proven: that Jelou sends it."
    ),
    Evidence.OLD_REFUSED: (
        "the receiver refuses the former credential and accepts the current one. Not proven: that Jelou sends it."
    ),
}
_NOT_CONFIRMED = "*not confirmed*: no answer of Jelou showed this field; a lower claim, neither a failure nor a pass."

# The palette of Okabe and Ito and a grey: told apart with every common kind of colour blindness.
_COLOURS = {
    Outcome.PLANNED: "#56b4e9",
    Outcome.CREATED: "#332288",
    Outcome.ROTATED: "#0072b2",
    Outcome.UPDATED: "#009e73",
    Outcome.UNCHANGED: "#bbbbbb",
    Outcome.NOT_DUE: "#888888",
    Outcome.BLOCKED: "#882255",
    Outcome.FAILED: "#d55e00",
    Outcome.DRIFTED: "#cc79a7",
    Outcome.MISSING: "#e69f00",
    Outcome.OVERDUE: "#999933",
    Outcome.UNKNOWN: "#f0e442",
    Outcome.NOT_STARTED: "#333333",
}
_MARGIN = 16
_BAR_WIDTH = 688
_BAR_HEIGHT = 28
# One failure among 10,000 rows would be a fifteenth of a pixel wide.
_NARROWEST = 4
_LEGEND_COLUMNS = 4
_LEGEND_LINE = 24

_ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"} | {mark: f"\\{mark}" for mark in "\\`*_[]#~$|"})
_ENDS_CODE = frozenset("`|<>")


def visible(text: str) -> str:
    """Control, bidi and other invisible characters become U+FFFD: nothing hides, or moves the text around it."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def escape(text: str, longest: int = LONGEST_SENTENCE) -> str:
    """Text that Markdown and HTML show as it is, clipped."""
    return _clip(visible(text), longest).translate(_ESCAPES)


def code(text: str) -> str:
    """A value as code, where links and marks are dead; escaped where code could be left early."""
    shown = _clip(visible(text), LONGEST_VALUE)
    if shown.strip() == shown != "" and _ENDS_CODE.isdisjoint(shown):
        return f"`{shown}`"
    return escape(shown)


def counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def by_outcome(results: Iterable[RowResult]) -> dict[Outcome, int]:
    counts = Counter(result.outcome for result in results)
    return {outcome: counts[outcome] for outcome in Outcome if outcome in counts}


def by_evidence(results: Iterable[RowResult]) -> dict[Evidence, int]:
    counts = Counter(result.evidence for result in results)
    return {evidence: counts[evidence] for evidence in Evidence if evidence in counts}


def tally(counts: Mapping[Outcome, int]) -> str:
    """In words: `2 failed, 1 not started`."""
    return ", ".join(f"{count:,} {_words(outcome)}" for outcome, count in counts.items())


def changes_text(result: RowResult, show: Callable[[str], str] = visible) -> list[str]:
    """One text a change; while it is only planned, also whether there is a way back."""
    is_plan = result.outcome is Outcome.PLANNED
    return [
        _change_text(change, show) + (", no way back" if is_plan and not change.can_be_undone else "")
        for change in result.changes
    ]


def _change_text(change: Change, show: Callable[[str], str]) -> str:
    before = "not readable" if change.before is None else show(change.before)
    return f"{show(change.field)}: {before} -> {show(change.after)}"


def unconfirmed_text(result: RowResult) -> list[str]:
    return [f"{visible(field)} not confirmed" for field in result.unconfirmed]


def evidence_text(result: RowResult) -> str:
    """The highest proof and what it leaves open: `read_back, authType not confirmed`."""
    return ", ".join(filter(None, [result.evidence, *unconfirmed_text(result)]))


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the cells are Markdown already."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def attention(results: Iterable[RowResult]) -> str:
    """What went wrong and what to do about it, said once for all projects it happened to; the most frequent first."""
    groups: dict[tuple[Outcome, str | None, str | None], list[str]] = {}
    for result in results:
        groups.setdefault((result.outcome, result.error, result.advice), []).append(result.project_id)
    largest_first = sorted(groups.items(), key=lambda group: len(group[1]), reverse=True)
    lines = [_group(*kind, projects) for kind, projects in largest_first[:MOST_GROUPS]]
    left = sum(len(projects) for _, projects in largest_first[MOST_GROUPS:])
    if left:
        lines.append(f"- and {left:,} more, see report.csv")
    return "\n".join(lines)


def proofs(results: Sequence[RowResult]) -> str:
    """One line for each kind of evidence reached: what it proves, and what it does not."""
    lines = [
        f"- `{evidence}` ({counted(count, 'project')}): {_PROVEN[evidence]}"
        for evidence, count in by_evidence(results).items()
    ]
    if any(result.unconfirmed for result in results):
        lines.append(f"- {_NOT_CONFIRMED}")
    return "\n".join(lines)


def unproven(results: Iterable[RowResult]) -> str:
    """What could not be proven and why, said once for all projects it holds for."""
    groups: dict[str, list[str]] = {}
    for result in results:
        for note in result.notes:
            groups.setdefault(note, []).append(result.project_id)
    return "\n".join(
        f"- {escape(note)}: {_projects(projects)}"
        for note, projects in sorted(groups.items(), key=lambda group: len(group[1]), reverse=True)[:MOST_GROUPS]
    )


def open_overlaps(results: Iterable[RowResult]) -> str:
    """Where the receiver should still accept the former credential, those that end first in front."""
    ends = sorted((result.overlap_until, result.project_id) for result in results if result.overlap_until)
    lines = [f"- until {until:%Y-%m-%d %H:%M} UTC: {code(project)}" for until, project in ends[:MOST_GROUPS]]
    left = len(ends) - MOST_GROUPS
    return "\n".join([*lines, f"- and {left:,} more, see report.csv"] if left > 0 else lines)


def all_projects(results: Sequence[RowResult], *, plan: bool) -> str:
    """Every project in a table to unfold, or where to find it when it is too large to be shown here."""
    elsewhere = f"All {counted(len(results), 'project')} are in the table artifact and in report.csv."
    if len(results) > MOST_ROWS:
        return elsewhere
    rows = _plan_table(results) if plan else _rotation_table(results)
    if len(rows) > MOST_CHARACTERS:
        return elsewhere
    unfolded = " open" if len(results) <= MOST_UNFOLDED else ""
    return f"<details{unfolded}>\n<summary>{counted(len(results), 'project')}</summary>\n\n{rows}\n\n</details>"


def outcome_image(counts: Mapping[Outcome, int]) -> str:
    """The bar as a Markdown image that carries its own data; its text alternative says the numbers."""
    data = base64.b64encode(outcome_bar(counts).encode()).decode()
    return f"![{tally(counts)}](data:image/svg+xml;base64,{data})"


def outcome_bar(counts: Mapping[Outcome, int]) -> str:
    """SVG on a card of its own, so that it reads the same on a white and on a dark page. Holds no foreign text."""
    width = _BAR_WIDTH + 2 * _MARGIN
    legend_top = _MARGIN + _BAR_HEIGHT + _MARGIN
    height = legend_top + _LEGEND_LINE * -(-len(counts) // _LEGEND_COLUMNS) + _MARGIN // 2
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    font = 'font-family="system-ui, sans-serif" font-size="14" fill="#1f2328"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" {size} {font}>',
        f"<title>{tally(counts)}</title>",
        f'<rect x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="8" fill="#ffffff" stroke="#d0d7de"/>',
        *_segments(counts),
        *_legend(counts, legend_top),
        "</svg>",
    ]
    return "\n".join(parts)


def _segments(counts: Mapping[Outcome, int]) -> Iterator[str]:
    to_share = _BAR_WIDTH - _NARROWEST * len(counts)
    total = sum(counts.values())
    left = float(_MARGIN)
    for outcome, count in counts.items():
        width = _NARROWEST + to_share * count / total
        yield (
            f'<rect x="{left:.2f}" y="{_MARGIN}" width="{width:.2f}" height="{_BAR_HEIGHT}"'
            f' fill="{_COLOURS[outcome]}" stroke="#ffffff"/>'
        )
        left += width


def _legend(counts: Mapping[Outcome, int], top: int) -> Iterator[str]:
    for place, (outcome, count) in enumerate(counts.items()):
        line, column = divmod(place, _LEGEND_COLUMNS)
        left, middle = _MARGIN + column * _BAR_WIDTH // _LEGEND_COLUMNS, top + line * _LEGEND_LINE + 8
        yield f'<circle cx="{left + 6}" cy="{middle}" r="6" fill="{_COLOURS[outcome]}"/>'
        yield f'<text x="{left + 20}" y="{middle + 5}">{count:,} {_words(outcome)}</text>'


def _clip(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _words(outcome: Outcome) -> str:
    return outcome.replace("_", " ")


def _group(outcome: Outcome, error: str | None, advice: str | None, projects: Sequence[str]) -> str:
    lines = [
        f"- **{len(projects):,} {_words(outcome)}**" + (f": {escape(error)}" if error else ""),
        f"  - What to do: {escape(advice)}" if advice else "",
        f"  - {'Project' if len(projects) == 1 else 'Projects'}: {_projects(projects)}",
    ]
    return "\n".join(filter(None, lines))


def _projects(projects: Sequence[str]) -> str:
    shown = ", ".join(code(project) for project in projects[:MOST_PROJECTS_OF_A_GROUP])
    left = len(projects) - MOST_PROJECTS_OF_A_GROUP
    return f"{shown} and {left:,} more, see report.csv" if left > 0 else shown


def _plan_table(results: Iterable[RowResult]) -> str:
    rows = [(code(result.project_id), _words(result.outcome), _changes(result)) for result in results]
    return table(("Project", "Outcome", "Changes"), rows)


def _rotation_table(results: Iterable[RowResult]) -> str:
    rows = [
        (
            code(result.project_id),
            _words(result.outcome),
            escape(evidence_text(result)),
            _changes(result),
            str(result.attempts),
        )
        for result in results
    ]
    return table(("Project", "Outcome", "Evidence", "Changes", "Attempts"), rows)


def _changes(result: RowResult) -> str:
    return "<br>".join(changes_text(result, code))
