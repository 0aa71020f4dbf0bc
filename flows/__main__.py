"""The command `jelou-rotation`: the terminal's door to the same flows."""

import argparse
import asyncio
import gc
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jelou_rotation import __version__, commands
from jelou_rotation.errors import Fault, RefusedInput, SettingsError

if TYPE_CHECKING:
    from jelou_rotation.report import Report

# Prefect and pydantic are imported inside the commands that need them, so that --help answers at once.

DESCRIPTION = """\
Keep Jelou external-support integrations as a manifest says, and rotate their credentials.

  jelou-rotation plan customers.yaml      show what would change, write nothing
  jelou-rotation rotate customers.yaml    do it, verify each project, write a report
"""

EPILOG = """\
Settings come from the environment, a .env file or a secrets directory; JELOU_API_KEY is the one you must set.
The README lists them all.

exit codes:
  0  every project is as wanted
  1  the run finished and some projects are not as wanted: the report says which and what to do
  2  refused before anything was sent: arguments, manifest, settings, references or an unreachable Prefect server
"""

RUN_EPILOG = """\
MANIFEST is a YAML or CSV file, an fsspec URL (https://, s3://, gs://, ...) or - for standard input.
The report is written to JELOU_REPORT_DIR (default: reports) and published as Prefect artifacts.

Runs are recorded by the Prefect server at PREFECT_API_URL. Without one a temporary server is started for the run,
which takes some ten seconds; `prefect server start` keeps one running.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = build_parser().parse_args(arguments)
    try:
        code: int = options.command(options)
    except RefusedInput as refusal:
        print(f"jelou-rotation: refused, nothing was sent.\n{refusal}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("jelou-rotation: interrupted.", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        # The reader of our output left. Python would complain once more when it closes standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    return code


def build_parser() -> argparse.ArgumentParser:
    parser = _parser(argparse.ArgumentParser, prog="jelou-rotation", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    given = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_plan_and_rotate(given)
    _add_onboarding(given)
    _add_close_and_audit(given)
    _add_records(given)
    _add_set_up(given)
    schema = _parser(given.add_parser, "schema", help="print the manifest's JSON Schema, for editors")
    schema.set_defaults(command=commands.schema)
    _add_simulate(given)
    return parser


def _parser(make: Any, *names: str, **texts: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = make(
        *names, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **texts
    )
    return parser


def _add_plan_and_rotate(given: Any) -> None:
    for mode, purpose in (
        ("plan", "show what would change, write nothing"),
        ("rotate", "bring the projects in line, rotate and verify their credentials"),
    ):
        parser = _add_run(given, mode, purpose)
        parser.add_argument(
            "--leaked", action="store_true", help="rotate now, due or not, without overlap; needs --only"
        )
        for option, meaning in (
            ("--overwrite-drift", "write over what somebody else changed in this project; may be repeated"),
            ("--end-overlap", "rotate this project in the middle of an open overlap; may be repeated"),
        ):
            parser.add_argument(option, metavar="PROJECT", action="append", default=[], help=meaning)
        if mode == "rotate":
            _add_limits(parser)
        parser.set_defaults(command=_run, flow="rotate_credentials", mode=mode)


def _add_onboarding(given: Any) -> None:
    purpose = "create the integrations that are missing, keep their signing secrets, bring the others in line"
    onboard = _add_run(given, "onboard", purpose)
    _add_limits(onboard)
    onboard.set_defaults(command=_run, flow="onboard_projects")
    purpose = "have Jelou make new signing secrets, one project at a time; the former ones are dead at once"
    secrets = _add_run(given, "signing-secrets", purpose, names_projects=True)
    secrets.set_defaults(command=_run, flow="rotate_signing_secrets")
    for parser in (onboard, secrets):
        parser.add_argument(
            "--plan",
            dest="mode",
            action="store_const",
            const="plan",
            default="rotate",
            help="show what would be done, write nothing",
        )
    export = _parser(given.add_parser, "export", help="print a manifest of what Jelou has for some projects")
    export.add_argument("projects", metavar="PROJECT", nargs="*", help="a projectId")
    export.add_argument("--from", dest="listed", metavar="FILE", help="a file with a projectId a line; - reads them")
    export.set_defaults(command=commands.export, read_block=_read_block)


def _add_close_and_audit(given: Any) -> None:
    close = _add_run(given, "close-overlaps", "retire the former credentials whose overlap is over")
    close.set_defaults(command=_run, flow="close_overlaps")
    audit = _add_run(given, "audit", "find what is not as declared at Jelou, in the records and at the receivers")
    audit.set_defaults(command=_run, flow="audit_integrations")


def _add_run(given: Any, name: str, purpose: str, *, names_projects: bool = False) -> argparse.ArgumentParser:
    parser = _parser(given.add_parser, name, help=purpose, description=f"{purpose.capitalize()}.", epilog=RUN_EPILOG)
    parser.add_argument("manifest", metavar="MANIFEST", help="the projects and their settings")
    parser.add_argument(
        "--only",
        metavar="PROJECT",
        action="append",
        required=names_projects,
        default=[],
        help="work on this projectId, or on tag:NAME; may be repeated",
    )
    parser.add_argument("--json", action="store_true", help="print report.json instead of the summary")
    return parser


def _add_limits(parser: argparse.ArgumentParser) -> None:
    limits = parser.add_argument_group("limits", "An AMOUNT is a number of projects, as 40, or a share, as 10%.")
    for option, meaning in (
        ("--max-changes", "refuse a plan that changes more projects"),
        ("--max-host-changes", "refuse a plan that moves more webhooks to another host; default: 10"),
        ("--max-downgrades", "refuse a plan that takes the authentication of more projects; default: 0"),
        ("--max-failures", "begin no further project once more than this need attention"),
    ):
        limits.add_argument(option, metavar="AMOUNT", default=argparse.SUPPRESS, help=meaning)
    limits.add_argument(
        "--ramp",
        metavar="STEP",
        action="append",
        default=[],
        help="go in steps, each 5, 10%%, tag:NAME or rest; may be repeated",
    )
    limits.add_argument("--ramp-pause", metavar="MINUTES", type=float, default=5, help="between two steps; default: 5")
    limits.add_argument(
        "--approved-plan",
        metavar="HASH",
        default="",
        help="go on only if the plan is still the one that a plan run ended with",
    )


def _add_records(given: Any) -> None:
    show = _nested(given, "credential", "what the record store knows of one project").add_parser(
        "show", help="print the credentials the receiver should accept"
    )
    show.add_argument("project", metavar="PROJECT", help="a projectId")
    show.add_argument("--pipe", action="store_true", help="print them although standard output is no terminal")
    show.set_defaults(command=commands.show_credential, read_block=_read_block)
    unpark = given.add_parser("unpark", help="let projects take part again that failed too often in a row")
    unpark.add_argument("projects", metavar="PROJECT", nargs="+", help="a projectId")
    unpark.set_defaults(command=commands.unpark, read_block=_read_block)
    store = _nested(given, "store", "the record store and its key")
    store.add_parser("key", help="print a new key for JELOU_STORE_KEY").set_defaults(command=commands.new_key)
    rekey = store.add_parser("rekey", help="encrypt every record anew with the first key of JELOU_STORE_KEY")
    rekey.set_defaults(command=commands.rekey, read_block=_read_block)


def _nested(given: Any, name: str, purpose: str) -> Any:
    return _parser(given.add_parser, name, help=purpose).add_subparsers(metavar="COMMAND", required=True)


def _add_set_up(given: Any) -> None:
    purpose = "prepare a Prefect server: the work pool, the lock and the alarms"
    parser = _parser(given.add_parser, "set-up", help=purpose, description=f"{purpose.capitalize()}.")
    parser.add_argument("--notify", metavar="TYPE/NAME", help="send alarms with this block, as slack-webhook/ops")
    for option, name in (("--automations", "automations.yaml"), ("--work-pool", "work-pool.json")):
        parser.add_argument(
            option, metavar="FILE", type=Path, default=Path("deployments", name), help="default: deployments/" + name
        )
    parser.set_defaults(command=_set_up)


def _add_simulate(given: Any) -> None:
    purpose = "serve a simulated Jelou on loopback, to try things out"
    parser = _parser(given.add_parser, "simulate", help=purpose, description=f"{purpose.capitalize()}.")
    parser.add_argument("--port", type=int, default=4010, help="default: 4010; 0 takes any free one")
    parser.add_argument("--projects", type=int, default=5, help="how many example projects, prj_1 and on; default: 5")
    parser.add_argument(
        "--switch",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="decide one of the API's unknowns, as shape=envelope; --switches lists them",
    )
    parser.add_argument("--switches", action="store_true", help="list the switches and end")
    parser.add_argument(
        "--flaky",
        metavar="SHARE",
        type=float,
        default=0.0,
        help="let this share of the answers fail in every way that passes, as 0.2; default: 0",
    )
    parser.set_defaults(command=commands.simulate)


_NOT_FOR_THE_FLOW = {"command", "flow", "json"}


def _run(options: argparse.Namespace) -> int:
    """Every other option is a parameter of the flow, by the same name."""
    parameters = {name: value for name, value in vars(options).items() if name not in _NOT_FOR_THE_FLOW}
    if options.manifest == "-":
        parameters["manifest"] = sys.stdin.read() + "\n"
    with _uncollected():
        _refuse_early(parameters)
        _quieten_prefect()
        run: Callable[..., Any] = getattr(import_module(f"flows.{options.flow}"), options.flow)
        gc.freeze()
        report = asyncio.run(_report_of(run, parameters))
    if options.json:
        print(json.dumps(report.as_json(), indent=2))
    else:
        _show(report)
    return 1 if report.needs_attention else 0


def _refuse_early(parameters: dict[str, Any]) -> None:
    """The flow looks at its input itself; looking here too spares a person the wait for Prefect's start."""
    from jelou_rotation.limits import Limits, ramp_steps
    from jelou_rotation.manifest import load
    from jelou_rotation.references import local_handlers, resolve
    from jelou_rotation.rotation import wanted_references
    from jelou_rotation.settings import Settings

    settings = Settings.load()
    Limits(**{name: value for name, value in parameters.items() if name.startswith("max_")})
    manifest = load(parameters["manifest"], allow_private_hosts=settings.allow_private_hosts)
    rows = manifest.select(parameters["only"]).rows
    ramp_steps(parameters.get("ramp", ()), (), lambda tag: [row.project_id for row in rows if tag in row.tags])
    wanted = wanted_references(settings, rows)
    if all(reference.scheme != "block" for reference in wanted):
        asyncio.run(resolve(wanted, local_handlers(allow_readable_files=settings.allow_readable_files)))


@contextmanager
def _uncollected() -> Iterator[None]:
    """
    Python's garbage collector finds nothing in modules, and takes a second for it, half of it at the end (measured).

    A run that is at work switches it on again.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


async def _report_of(run: Callable[..., Any], parameters: dict[str, Any]) -> "Report":
    from jelou_rotation.report import Report, RowsNeedAttention

    await _require_prefect()
    state = await run(**parameters, return_state=True)
    result = await state.aresult(raise_on_failure=False)
    if isinstance(result, RowsNeedAttention):
        return result.report
    if isinstance(result, Report):
        return result
    raise result


def _quieten_prefect() -> None:
    """The summary is what a person came for; Prefect keeps its log with the run."""
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("DO_NOT_TRACK", "1")


async def _require_prefect() -> None:
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL

    if not PREFECT_API_URL.value():
        if sys.stderr.isatty():
            print("Starting a temporary Prefect server, some ten seconds ...", file=sys.stderr)
        return
    async with get_client() as client:
        if await client.api_healthcheck():
            # Not which address: it may hold a password.
            raise SettingsError([Fault("PREFECT_API_URL", "no Prefect server answers there")])


def _show(report: "Report") -> None:
    from jelou_rotation.report import summary_text
    from jelou_rotation.settings import Settings
    from tasks.reports import report_folder

    print(summary_text(report, width=shutil.get_terminal_size((120, 24)).columns))
    print(f"{report.effort()} The report is in {report_folder(Settings.load(), report.run)}")
    if report.run.plan:
        print(f"The plan is {report.run.plan}: rotate --approved-plan {report.run.plan} does exactly this.")


def _set_up(options: argparse.Namespace) -> int:
    _quieten_prefect()
    from prefect.settings import PREFECT_API_URL

    from tasks.server_setup import set_up_server

    if not PREFECT_API_URL.value():
        raise SettingsError([Fault("PREFECT_API_URL", "missing; it says which Prefect server to prepare")])

    async def run() -> list[str]:
        await _require_prefect()
        return await set_up_server(options.automations, options.notify, options.work_pool)

    print("\n".join(asyncio.run(run())))
    return 0


async def _read_block(target: str) -> str:
    _quieten_prefect()
    from tasks.secret_blocks import read_secret_block

    return await read_secret_block(target)


if __name__ == "__main__":
    sys.exit(main())
