import base64
import csv
import io
import json
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import pytest
from markdown_it import MarkdownIt

from jelou_rotation.manifest import load
from jelou_rotation.outcomes import Evidence, Moment, Outcome, RowResult
from jelou_rotation.plan import Change
from jelou_rotation.report import Report, RunInfo, markdown, summary_text, write
from jelou_rotation.report_markdown import by_outcome, code, escape, outcome_bar, outcome_image, proofs
from jelou_rotation.row import Row

BEGAN = datetime(2026, 3, 1, 6, 30, tzinfo=UTC)
REQUESTS = {"GET": 40, "PATCH": 12, "retries": 3, "throttled": 0}
ADDRESS = Change("webhookUrl", "https://old.example/hook", "https://new.example/hook?a=1&b=2", can_be_undone=True)
CREDENTIAL = Change("authorization", None, "env:PANEL_TOKEN")


def a_report(
    results: Iterable[RowResult],
    mode: str = "rotate",
    seconds: float = 125.5,
    manifest: str = "customers.yaml",
    requests: Mapping[str, int] = REQUESTS,
) -> Report:
    ended = BEGAN + timedelta(seconds=seconds)
    return Report(RunInfo("run-1", mode, manifest, "ab12" * 16, BEGAN, ended, "0.1.0"), tuple(results), requests)


def rows(outcome: Outcome, count: int, start: int = 0, **values) -> list[RowResult]:
    return [RowResult(f"project-{number}", outcome, **values) for number in range(start, start + count)]


def failing(project_id: str = "p", error: str | None = "Jelou answered 500", advice: str | None = "Run it again."):
    return RowResult(project_id, Outcome.FAILED, attempts=1, error=error, advice=advice)


# --- report.json


def test_report_json_has_the_documented_shape():
    result = RowResult(
        "p1",
        Outcome.ROTATED,
        Evidence.READ_BACK,
        (ADDRESS, CREDENTIAL),
        attempts=2,
        unconfirmed=("authType",),
        notes=("the receiver was not asked",),
        overlap_until=BEGAN + timedelta(days=1),
    )
    assert a_report([result, failing("p2")]).as_json() == {
        "schemaVersion": 1,
        "run": {
            "id": "run-1",
            "mode": "rotate",
            "manifest": "customers.yaml",
            "manifestSha256": "ab12" * 16,
            "startedAt": "2026-03-01T06:30:00.000Z",
            "finishedAt": "2026-03-01T06:32:05.500Z",
            "version": "0.1.0",
            "plan": None,
            "timeline": [],
        },
        "summary": {
            "total": 2,
            "byOutcome": {"rotated": 1, "failed": 1},
            "byEvidence": {"read_back": 1},
            "requests": REQUESTS,
            "durationSeconds": 125.5,
        },
        "projects": [
            {
                "projectId": "p1",
                "outcome": "rotated",
                "evidence": "read_back",
                "changes": [
                    {
                        "field": "webhookUrl",
                        "before": "https://old.example/hook",
                        "after": "https://new.example/hook?a=1&b=2",
                        "canBeUndone": True,
                    },
                    {"field": "authorization", "before": None, "after": "env:PANEL_TOKEN", "canBeUndone": False},
                ],
                "attempts": 2,
                "unconfirmed": ["authType"],
                "error": None,
                "advice": None,
                "notes": ["the receiver was not asked"],
                "overlapUntil": "2026-03-02T06:30:00.000Z",
            },
            {
                "projectId": "p2",
                "outcome": "failed",
                "evidence": None,
                "changes": [],
                "attempts": 1,
                "unconfirmed": [],
                "error": "Jelou answered 500",
                "advice": "Run it again.",
                "notes": [],
                "overlapUntil": None,
            },
        ],
    }


@pytest.mark.parametrize(
    "project_id", ["=1+1", "a\r\n\x1b[31m", "\u202eevil", "ni\u00f1o", "half \ud800 pair"], ids=ascii
)
def test_report_json_gives_every_text_back_exactly(project_id, tmp_path):
    write(a_report([failing(project_id)]), tmp_path, [])
    assert json.loads((tmp_path / "report.json").read_text("utf-8"))["projects"][0]["projectId"] == project_id


def test_times_are_told_in_utc_wherever_the_run_was():
    bogota = timezone(timedelta(hours=-5))
    run = RunInfo("r", "plan", "m", "", BEGAN.astimezone(bogota), BEGAN.astimezone(bogota), "0")
    report = Report(run, (), {})
    assert report.as_json()["run"]["startedAt"] == "2026-03-01T06:30:00.000Z"
    assert "2026-03-01 06:30:00 UTC" in markdown(report)


# --- one sentence


@pytest.mark.parametrize(
    ("mode", "outcomes", "sentence"),
    [
        ("rotate", {}, "No projects: nothing to do."),
        ("plan", {}, "No projects: nothing to do."),
        (
            "rotate",
            {Outcome.ROTATED: 37, Outcome.FAILED: 2, Outcome.MISSING: 1},
            "3 of 40 projects need attention: 2 failed, 1 missing.",
        ),
        (
            "rotate",
            {Outcome.ROTATED: 38, Outcome.UNCHANGED: 2},
            "All 40 projects are as wanted: 38 rotated, 2 unchanged.",
        ),
        ("rotate", {Outcome.UPDATED: 1}, "1 project is as wanted: 1 updated."),
        (
            "rotate",
            {Outcome.ROTATED: 1, Outcome.NOT_STARTED: 1},
            "1 of 2 projects needs attention: 1 not started.",
        ),
        ("rotate", {Outcome.UNKNOWN: 1}, "1 of 1 project needs attention: 1 unknown."),
        ("rotate", {Outcome.DRIFTED: 1200}, "1,200 of 1,200 projects need attention: 1,200 drifted."),
        (
            "plan",
            {Outcome.PLANNED: 12, Outcome.UNCHANGED: 28},
            "40 projects: 12 would change, 28 are already so.",
        ),
        ("plan", {Outcome.PLANNED: 1}, "1 project: 1 would change."),
        ("plan", {Outcome.UNCHANGED: 1}, "1 project: 1 is already so."),
        (
            "plan",
            {Outcome.PLANNED: 12, Outcome.UNCHANGED: 25, Outcome.FAILED: 2, Outcome.MISSING: 1},
            "3 of 40 projects need attention: 2 failed, 1 missing; 12 would change, 25 are already so.",
        ),
        ("plan", {Outcome.MISSING: 2}, "2 of 2 projects need attention: 2 missing."),
    ],
)
def test_the_headline_says_the_run_in_one_sentence(mode, outcomes, sentence):
    results = [result for outcome, count in outcomes.items() for result in rows(outcome, count)]
    assert a_report(results, mode).headline() == sentence


def test_what_needs_attention_is_what_is_not_as_wanted():
    results = [RowResult(outcome, outcome) for outcome in Outcome]
    needing = {result.outcome for result in a_report(results).needs_attention}
    assert needing == {
        Outcome.BLOCKED,
        Outcome.FAILED,
        Outcome.DRIFTED,
        Outcome.MISSING,
        Outcome.OVERDUE,
        Outcome.UNKNOWN,
        Outcome.NOT_STARTED,
    }


# --- Markdown


class Rendered(HTMLParser):
    """What a browser would see: the elements with their attributes, and the text between them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.cells: list[str] = []
        parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
        parser.validateLink = lambda _: True  # Its own guard drops javascript: links and our image alike.
        self.feed(parser.render(text))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag in {"td", "th"}:
            self.cells.append("")

    def handle_data(self, data):
        self.text += data
        if self.cells:
            self.cells[-1] += data


HARMLESS = [
    "<script>",
    "<a href=x>",
    "</details>",
    "<!-- x",
    "&lt;b&gt;",
    "a|b",
    "a\\|b",
    "a\\",
    "``` x",
    "`a` <b>`",
    "`",
]
HARMLESS += ["[x](javascript:alert(1))", "![x](http://evil.example/x.png)", "<javascript:alert(1)>", "[x]: http://x"]
HARMLESS += ["*a* **b**", "_a_ __b__", "~~a~~", "# a #", "a $b$ c", "javascript:alert(1)", "- a", "1. a", "> a", "---"]


@pytest.mark.parametrize("hostile", HARMLESS)
def test_foreign_text_is_shown_in_markdown_and_cannot_act(hostile):
    plain, foreign = (
        Rendered(
            markdown(
                a_report(
                    [
                        RowResult(text, Outcome.ROTATED, Evidence.ECHOED, (Change("webhookUrl", text, text),)),
                        failing(text, text, text),
                    ],
                    manifest=text,
                )
            )
        )
        for text in ("plain", hostile)
    )
    assert [tag for tag in foreign.tags if tag != "code"] == [tag for tag in plain.tags if tag != "code"]
    assert [pair for pair in foreign.attributes if pair[0] != "src"] == [
        pair for pair in plain.attributes if pair[0] != "src"
    ]
    assert foreign.tags.count("img") == 1
    assert len(foreign.cells) == len(plain.cells)
    assert foreign.text == plain.text.replace("plain", hostile)


@pytest.mark.parametrize(
    ("text", "escaped", "as_code"),
    [
        ("env:MY_TOKEN", "env:MY\\_TOKEN", "`env:MY_TOKEN`"),
        ("https://a.example/?b=1&c=2", "https://a.example/?b=1&amp;c=2", "`https://a.example/?b=1&c=2`"),
        ("<b>", "&lt;b&gt;", "&lt;b&gt;"),
        ("a|b", r"a\|b", r"a\|b"),
        ("a`b", "a\\`b", "a\\`b"),
        ("[a](b)", "\\[a\\](b)", "`[a](b)`"),
        ("*~#$\\", "\\*\\~\\#\\$\\\\", "`*~#$\\`"),
        (" a", " a", " a"),
        ("", "", ""),
        ("x" * 120, "x" * 120, f"`{'x' * 120}`"),
        ("x" * 501, "x" * 499 + "…", f"`{'x' * 119}…`"),
    ],
    ids=lambda text: text[:30],
)
def test_only_what_can_be_left_early_is_not_code(text, escaped, as_code):
    assert escape(text) == escaped
    assert code(text) == as_code


@pytest.mark.parametrize(
    "hidden", ["\n", "\r", "\t", "\x00", "\x1b", "\x85", "\u2028", "\u202e", "\u2066", "\u200b", "\ud800"], ids=ascii
)
def test_hidden_characters_are_visible_wherever_people_read(hidden, tmp_path):
    text = f"a{hidden}b"
    report = a_report([failing(text, text, text), RowResult("p", Outcome.UPDATED, changes=(Change("x", text, text),))])
    write(report, tmp_path, [])
    cells = csv.reader(io.StringIO((tmp_path / "report.csv").read_text("utf-8-sig"), newline=""))
    table_texts = [str(value) for row in report.table() for value in row.values()]
    for shown in (markdown(report), summary_text(report, width=80), "".join(map("".join, cells)), "".join(table_texts)):
        assert "a\ufffdb" in shown
        assert text not in shown


def test_the_sections_come_in_the_order_a_person_asks_for_them():
    lines = markdown(a_report([*rows(Outcome.ROTATED, 2, evidence=Evidence.ECHOED), failing("p9")])).splitlines()
    assert lines[0] == "# Rotate: `customers.yaml`"
    assert lines[2] == "1 of 3 projects needs attention: 1 failed."
    assert lines[4].startswith("![2 rotated, 1 failed](data:image/svg+xml;base64,")
    assert lines[6:] == [
        "| Run | `run-1` |",
        "| --- | --- |",
        "| Started | 2026-03-01 06:30:00 UTC |",
        "| Took | 2 minutes 6 seconds |",
        "| Requests | 40 GET, 12 PATCH, 3 retries, 0 throttled |",
        "| Manifest SHA-256 | `ab12ab12ab12` |",
        "| Version | `0.1.0` |",
        "",
        "## What to do next",
        "",
        "- Do what is said below, then run `retry.yaml` of the report folder: it holds the rows that are left.",
        "",
        "## What needs attention",
        "",
        "- **1 failed**: Jelou answered 500",
        "  - What to do: Run it again.",
        "  - Project: `p9`",
        "",
        "## What was proven",
        "",
        (
            "- `echoed` (2 projects): Jelou's answer carries what was sent, so this row was written."
            " Not proven: which credential."
        ),
        "",
        "## Time line",
        "",
        "| UTC | What happened |",
        "| --- | --- |",
        "| 06:30:00 | started |",
        "| 06:32:05 | finished |",
        "",
        "## All projects",
        "",
        "<details open>",
        "<summary>3 projects</summary>",
        "",
        "| Project | Outcome | Evidence | Changes | Attempts |",
        "| --- | --- | --- | --- | --- |",
        "| `project-0` | rotated | echoed |  | 0 |",
        "| `project-1` | rotated | echoed |  | 0 |",
        "| `p9` | failed |  |  | 1 |",
        "",
        "</details>",
    ]


def test_a_plan_says_how_to_do_exactly_this():
    plan = replace(a_report([RowResult("p1", Outcome.PLANNED)], "plan").run, plan="0123456789ab")
    text = markdown(Report(plan, (RowResult("p1", Outcome.PLANNED),), {}))
    assert "mode rotate with `approved_plan` set to `0123456789ab`" in text


def test_the_time_line_says_what_happened_when_and_nothing_in_it_can_act():
    at = datetime(2026, 3, 1, 6, 31, tzinfo=UTC)
    report = a_report(rows(Outcome.ROTATED, 1))
    run = replace(report.run, timeline=(Moment(at, "rotating <b>1</b> project"),))
    text = markdown(Report(run, report.results, {}))
    assert "| 06:31:00 | rotating &lt;b&gt;1&lt;/b&gt; project |" in text


def test_a_plan_shows_each_field_before_and_after():
    text = markdown(a_report([RowResult("p1", Outcome.PLANNED, changes=(ADDRESS, CREDENTIAL))], "plan"))
    assert text.startswith("# Plan: `customers.yaml`")
    assert (
        "| `p1` | planned | `webhookUrl`: `https://old.example/hook` -> `https://new.example/hook?a=1&b=2`"
        "<br>`authorization`: not readable -> `env:PANEL_TOKEN`, no way back |"
    ) in text


def test_a_run_without_projects_has_no_bar_and_no_sections():
    text = markdown(a_report([], requests={}))
    assert "![" not in text
    assert "##" not in text
    assert "| Requests | no requests |" in text


@pytest.mark.parametrize("evidence", Evidence)
def test_every_evidence_says_what_it_proves_and_what_not(evidence):
    text = proofs(rows(Outcome.ROTATED, 1, evidence=evidence))
    assert text.startswith(f"- `{evidence}` (1 project): ")
    assert "Not proven: " in text


def test_a_field_nobody_confirmed_is_a_lower_claim_in_every_form(tmp_path):
    report = a_report(
        [RowResult("p", Outcome.ROTATED, Evidence.READ_BACK, (CREDENTIAL,), 1, unconfirmed=("authType",))]
    )
    write(report, tmp_path, [])
    assert "| read\\_back, authType not confirmed |" in markdown(report)
    assert "\n- *not confirmed*: " in markdown(report)
    assert report.table()[0]["evidence"] == "read_back, authType not confirmed"
    assert "authType not confirmed" in summary_text(report, width=80)
    assert '"authType"' in (tmp_path / "report.csv").read_text("utf-8-sig")
    assert report.headline() == "1 project is as wanted: 1 rotated."


def test_the_same_trouble_is_said_once_the_most_frequent_first():
    text = markdown(a_report([failing("lone", "Jelou answered 404", None), *map(failing, map(str, range(12)))]))
    section = text.split("## What needs attention\n\n")[1].split("\n\n")[0]
    assert section.splitlines() == [
        "- **12 failed**: Jelou answered 500",
        "  - What to do: Run it again.",
        "  - Projects: `0`, `1`, `2`, `3`, `4`, `5`, `6`, `7`, `8`, `9` and 2 more, see report.csv",
        "- **1 failed**: Jelou answered 404",
        "  - Project: `lone`",
    ]


def test_the_hundred_first_kind_of_trouble_is_only_counted():
    text = markdown(a_report(failing(f"p{number}", f"error {number}") for number in range(103)))
    assert text.count("  - What to do: ") == 100
    assert "\n- and 3 more, see report.csv\n" in text


@pytest.mark.parametrize(
    ("count", "folded"), [(500, True), (501, False)], ids=["500 rows are shown", "501 rows are elsewhere"]
)
def test_a_long_table_is_left_to_the_artifact_and_the_csv(count, folded):
    text = markdown(a_report(rows(Outcome.ROTATED, count)))
    assert ("<details>" in text) is folded
    assert ("All 501 projects are in the table artifact and in report.csv." in text) is not folded


@pytest.mark.parametrize(
    "results",
    [
        rows(Outcome.ROTATED, 10_000, evidence=Evidence.READ_BACK, changes=(ADDRESS, CREDENTIAL)),
        [failing(f"{n:0>2000}", f"{n} {'x' * 2000}", "y" * 2000) for n in range(10_000)],
        rows(Outcome.ROTATED, 500, changes=tuple(Change("webhookUrl", "<" * 5000, "|" * 5000) for _ in range(4))),
    ],
    ids=["all rotated", "all fail, each its own way, at length", "500 rows of huge values"],
)
def test_the_markdown_stays_small_and_quick(results):
    report = a_report(results)
    began = time.process_time()
    assert len(markdown(report).encode()) < 300_000
    assert time.process_time() - began < 0.5


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "less than a second"),
        (1, "1 second"),
        (61, "1 minute 1 second"),
        (120, "2 minutes"),
        (3725, "1 hour 2 minutes"),
    ],
)
def test_the_duration_is_told_in_words(seconds, words):
    assert f"| Took | {words} |" in markdown(a_report([], seconds=seconds))


# --- the bar


def drawn(outcomes: dict[Outcome, int]) -> ET.Element:
    return ET.fromstring(outcome_bar(outcomes))  # noqa: S314  # our own text, and being well-formed is the claim


def bar_widths(svg: ET.Element) -> list[float]:
    return [float(rect.get("width", "")) for rect in svg.findall("{*}rect")[1:]]


@pytest.mark.parametrize("counts", [(1,), (50, 50), (75, 25), (1, 2, 3, 4), tuple(range(100, 1000, 100))], ids=str)
def test_the_bar_has_the_proportions_of_the_counts(counts):
    svg = drawn(dict(zip(Outcome, counts, strict=False)))
    widths = bar_widths(svg)
    assert sum(widths) == pytest.approx(688, abs=0.1)
    lefts = [float(rect.get("x", "")) for rect in svg.findall("{*}rect")[1:]]
    assert lefts == pytest.approx([16 + sum(widths[:place]) for place in range(len(widths))], abs=0.1)
    shares = [count / sum(counts) for count in counts]
    assert [width / 688 for width in widths] == pytest.approx(shares, abs=0.03)


def test_one_row_among_ten_thousand_can_be_seen_in_the_bar():
    assert min(bar_widths(drawn({Outcome.ROTATED: 9_999, Outcome.FAILED: 1}))) >= 4


def test_every_outcome_has_a_colour_of_its_own_and_a_legend():
    svg = drawn(dict.fromkeys(Outcome, 1000))
    fills = {rect.get("fill") for rect in svg.findall("{*}rect")[1:]}
    assert len(fills) == len(Outcome)
    assert fills == {dot.get("fill") for dot in svg.findall("{*}circle")}
    assert [text.text for text in svg.findall("{*}text")] == [f"1,000 {kind.replace('_', ' ')}" for kind in Outcome]


def test_the_legend_stays_inside_the_card():
    svg = drawn(dict.fromkeys(Outcome, 1))
    assert all(float(text.get("y", "")) + 4 < float(svg.get("height", "")) for text in svg.findall("{*}text"))


def test_the_image_is_the_bar_and_holds_no_foreign_text():
    report = a_report([failing("planted", "planted", "planted")], manifest="planted")
    image = outcome_image(by_outcome(report.results))
    assert image in markdown(report)
    alternative, data = re.fullmatch(r"!\[(.*)\]\(data:image/svg\+xml;base64,(.*)\)", image).groups()
    svg = base64.b64decode(data).decode()
    assert svg == outcome_bar({Outcome.FAILED: 1})
    assert alternative == "1 failed"
    assert "planted" not in svg


# --- the table artifact and CSV


def test_the_table_artifact_has_one_row_a_project():
    result = RowResult("=p|1", Outcome.ROTATED, Evidence.ECHOED, (ADDRESS, CREDENTIAL), attempts=1)
    assert a_report([result, failing("p2")]).table() == [
        {
            "projectId": "=p|1",
            "outcome": "rotated",
            "evidence": "echoed",
            "changes": "webhookUrl: https://old.example/hook -> https://new.example/hook?a=1&b=2;"
            " authorization: not readable -> env:PANEL_TOKEN",
            "attempts": 1,
            "error": "",
        },
        {
            "projectId": "p2",
            "outcome": "failed",
            "evidence": "",
            "changes": "",
            "attempts": 1,
            "error": "Jelou answered 500",
        },
    ]


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=1+1", "'=1+1"),
        ("+1", "'+1"),
        ("-1", "'-1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'\ufffd=1"),
        ("\tx", "'\ufffdx"),
        ("\rx", "'\ufffdx"),
        ("\nx", "'\ufffdx"),
        ("  =1", "'  =1"),
        ('"=1', "'\"=1"),
        (" '=1", "' '=1"),
        ("\uff1d1", "'\uff1d1"),
        ("p=1", "p=1"),
        ("p-1", "p-1"),
        ('a "b", c', 'a "b", c'),
        ("ni\u00f1o", "ni\u00f1o"),
        ("", ""),
    ],
    ids=ascii,
)
def test_no_cell_of_the_csv_is_a_formula(text, cell, tmp_path):
    write(a_report([failing(text, text, text)]), tmp_path, [])
    lines = csv.reader(io.StringIO((tmp_path / "report.csv").read_bytes().decode("utf-8-sig"), newline=""))
    assert list(lines)[1] == [cell, "failed", "", "", "1", "", cell, cell, "", ""]


def test_the_csv_is_rfc_4180_with_the_mark_excel_needs(tmp_path):
    write(a_report(rows(Outcome.ROTATED, 1)), tmp_path, [])
    assert (tmp_path / "report.csv").read_bytes() == (
        b"\xef\xbb\xbf"
        b'"projectId","outcome","evidence","changes","attempts","unconfirmed","error","advice","notes","overlapUntil"\r\n'
        b'"project-0","rotated","","","0","","","","",""\r\n'
    )


# --- the terminal


def test_the_terminal_shows_one_aligned_line_a_row_and_what_to_do():
    results = [
        RowResult("p1", Outcome.ROTATED, Evidence.READ_BACK, (CREDENTIAL,), unconfirmed=("authType",)),
        RowResult("project-2", Outcome.UNCHANGED),
        failing("p3", advice="Run the row again: the same value is sent, which does no harm."),
    ]
    assert summary_text(a_report(results), width=54).splitlines() == [
        "p1         rotated    read_back",
        "    authorization: not readable -> env:PANEL_TOKEN",
        "    authType not confirmed",
        "project-2  unchanged",
        "p3         failed",
        "    Jelou answered 500",
        "    Run the row again: the same value is sent, which",
        "    does no harm.",
        "",
        "1 of 3 projects needs attention: 1 failed.",
    ]
    assert summary_text(a_report(results[:1]), width=99).splitlines()[0] == (
        "p1  rotated  read_back  authorization: not readable -> env:PANEL_TOKEN; authType not confirmed"
    )


def test_a_plan_in_the_terminal_has_no_empty_column():
    report = a_report([RowResult("p1", Outcome.PLANNED, changes=(CREDENTIAL,))], "plan")
    assert summary_text(report, width=80).splitlines() == [
        "p1  planned  authorization: not readable -> env:PANEL_TOKEN, no way back",
        "",
        "1 project: 1 would change.",
    ]


def test_an_address_in_an_error_can_be_copied_whole_from_a_narrow_terminal():
    address = "https://panel-of-the-customer.example/external-support/hook"
    lines = summary_text(a_report([failing(error=f"refused: {address}", advice="a b c d e f g")]), width=5).splitlines()
    assert lines[1:-2] == ["    refused:", f"    {address}", "    a b c d e f g"]


def test_a_long_run_shows_only_what_needs_attention_and_the_counts():
    lines = summary_text(a_report([*rows(Outcome.ROTATED, 60), failing("p9")]), width=80).splitlines()
    assert lines == [
        "p9  failed",
        "    Jelou answered 500",
        "    Run it again.",
        "",
        "60 rotated, 1 failed",
        "1 of 61 projects needs attention: 1 failed.",
    ]


def test_a_long_run_of_failures_does_not_flood_the_terminal():
    lines = summary_text(a_report(map(failing, map(str, range(1000)))), width=80).splitlines()
    assert sum("failed" in line for line in lines[:-2]) == 60
    assert lines[-3] == "and 940 more, see report.csv"


@pytest.mark.parametrize(
    ("results", "text"),
    [
        ([], "No projects: nothing to do."),
        (rows(Outcome.ROTATED, 61), "61 rotated\nAll 61 projects are as wanted: 61 rotated."),
    ],
    ids=["no rows", "many rows, all well"],
)
def test_where_no_row_is_shown_the_terminal_says_only_the_sentence(results, text):
    assert summary_text(a_report(results), width=80) == text


# --- the files


def test_writing_makes_the_folders_and_leaves_only_the_files(tmp_path):
    folder = tmp_path / "reports" / "run-1"
    report = a_report(rows(Outcome.ROTATED, 1))
    write(report, folder, [])
    assert sorted(path.name for path in folder.iterdir()) == ["report.csv", "report.json", "report.md"]
    assert (folder / "report.md").read_text("utf-8") == markdown(report)


def test_a_file_that_cannot_be_replaced_stays_and_no_unfinished_one_with_it(tmp_path):
    (tmp_path / "report.json").mkdir()
    with pytest.raises(OSError, match=r"report\.json"):
        write(a_report([]), tmp_path, [])
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_the_rows_to_run_again_are_a_manifest(tmp_path):
    again = [
        Row(
            project_id="p 1: #2",
            webhook_url="https://panel.example/hook?a=1",
            auth_type="bearer",
            authorization="env:PANEL_TOKEN",
            api_key="block:secret/jelou-key",
            tags=["pilot"],
        ),
        Row(project_id="0123", auth_type="no_auth"),
    ]
    write(a_report([failing("p 1: #2"), failing("0123")]), tmp_path, iter(again))
    assert load(str(tmp_path / "retry.yaml")).rows == tuple(again)


def test_the_rows_of_an_earlier_run_do_not_stay_behind(tmp_path):
    write(a_report([failing()]), tmp_path, [Row(project_id="p", auth_type="no_auth")])
    write(a_report(rows(Outcome.ROTATED, 1)), tmp_path, [])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.csv", "report.json", "report.md"]


def test_the_effort_of_a_run_is_one_sentence():
    assert a_report([]).effort() == "It took 2 minutes 6 seconds and 40 GET, 12 PATCH, 3 retries, 0 throttled."
