"""The command `jelou-rotation`: the terminal's door to the same flows."""

import argparse
import asyncio
import getpass
import json
import os
import shutil
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

from jelou_rotation import __version__
from jelou_rotation.errors import Fault, RefusedInput, SettingsError

if TYPE_CHECKING:
    from jelou_rotation.records import Store
    from jelou_rotation.report import Report
    from jelou_rotation.simulator import Simulator, Switches

# Prefect, pydantic and aiohttp are imported inside the commands that need them, so that --help answers at once.

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

SIMULATOR_READY = """\
A simulated Jelou listens at {url} (its own page says what else it can do). In another terminal:

  export JELOU_BASE_URL={url}/jelouapi/v1 JELOU_API_KEY=demo-key JELOU_ALLOW_PRIVATE_HOSTS=true
  jelou-rotation plan MANIFEST

Ctrl-C ends it.
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
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_plan_and_rotate(commands)
    _add_records(commands)
    schema = _parser(commands.add_parser, "schema", help="print the manifest's JSON Schema, for editors")
    schema.set_defaults(command=_schema)
    _add_simulate(commands)
    return parser


def _parser(make: Any, *names: str, **texts: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = make(
        *names, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **texts
    )
    return parser


def _add_plan_and_rotate(commands: Any) -> None:
    for mode, purpose in (
        ("plan", "show what would change, write nothing"),
        ("rotate", "bring the projects in line, rotate and verify their credentials"),
    ):
        parser = _add_run(commands, mode, purpose)
        parser.add_argument(
            "--leaked", action="store_true", help="rotate now, due or not, without overlap; needs --only"
        )
        for option, meaning in (
            ("--overwrite-drift", "write over what somebody else changed in this project; may be repeated"),
            ("--end-overlap", "rotate this project in the middle of an open overlap; may be repeated"),
        ):
            parser.add_argument(option, metavar="PROJECT", action="append", default=[], help=meaning)
        parser.set_defaults(command=_rotate, mode=mode)


def _add_run(commands: Any, name: str, purpose: str) -> argparse.ArgumentParser:
    parser = _parser(commands.add_parser, name, help=purpose, description=f"{purpose.capitalize()}.", epilog=RUN_EPILOG)
    parser.add_argument("manifest", metavar="MANIFEST", help="the projects and their settings")
    parser.add_argument(
        "--only",
        metavar="PROJECT",
        action="append",
        default=[],
        help="work on this projectId, or on tag:NAME; may be repeated",
    )
    parser.add_argument("--json", action="store_true", help="print report.json instead of the summary")
    return parser


def _add_records(commands: Any) -> None:
    close = _add_run(commands, "close-overlaps", "retire the former credentials whose overlap is over")
    close.set_defaults(command=_close_overlaps)
    show = _nested(commands, "credential", "what the record store knows of one project").add_parser(
        "show", help="print the credentials the receiver should accept"
    )
    show.add_argument("project", metavar="PROJECT", help="a projectId")
    show.add_argument("--pipe", action="store_true", help="print them although standard output is no terminal")
    show.set_defaults(command=_show_credential)
    unpark = commands.add_parser("unpark", help="let projects take part again that failed too often in a row")
    unpark.add_argument("projects", metavar="PROJECT", nargs="+", help="a projectId")
    unpark.set_defaults(command=_unpark)
    store = _nested(commands, "store", "the record store and its key")
    store.add_parser("key", help="print a new key for JELOU_STORE_KEY").set_defaults(command=_new_key)
    rekey = store.add_parser("rekey", help="encrypt every record anew with the first key of JELOU_STORE_KEY")
    rekey.set_defaults(command=_rekey)


def _nested(commands: Any, name: str, purpose: str) -> Any:
    return _parser(commands.add_parser, name, help=purpose).add_subparsers(metavar="COMMAND", required=True)


def _add_simulate(commands: Any) -> None:
    purpose = "serve a simulated Jelou on loopback, to try things out"
    parser = _parser(commands.add_parser, "simulate", help=purpose, description=f"{purpose.capitalize()}.")
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
    parser.set_defaults(command=_simulate)


def _rotate(options: argparse.Namespace) -> int:
    def start(manifest: str) -> Any:
        from flows.rotate_credentials import rotate_credentials
        from tasks.runs import Mode

        return rotate_credentials(
            manifest,
            Mode(options.mode),
            options.only,
            options.leaked,
            options.overwrite_drift,
            options.end_overlap,
            return_state=True,
        )

    return _run(options, start)


def _close_overlaps(options: argparse.Namespace) -> int:
    def start(manifest: str) -> Any:
        from flows.close_overlaps import close_overlaps

        return close_overlaps(manifest, options.only, return_state=True)

    return _run(options, start)


def _run(options: argparse.Namespace, start: Callable[[str], Any]) -> int:
    source = sys.stdin.read() + "\n" if options.manifest == "-" else options.manifest
    _refuse_early(source, options.only)
    _quieten_prefect()
    report = asyncio.run(_report_of(start, source))
    if options.json:
        print(json.dumps(report.as_json(), indent=2))
    else:
        _show(report)
    return 1 if report.needs_attention else 0


def _refuse_early(manifest: str, only: Sequence[str]) -> None:
    """The flow looks at its input itself; looking here too spares a person the wait for Prefect's start."""
    from jelou_rotation.manifest import load
    from jelou_rotation.references import local_handlers, resolve
    from jelou_rotation.rotation import wanted_references
    from jelou_rotation.settings import Settings

    settings = Settings.load()
    rows = load(manifest, allow_private_hosts=settings.allow_private_hosts).select(only).rows
    wanted = wanted_references(settings, rows)
    if all(reference.scheme != "block" for reference in wanted):
        asyncio.run(resolve(wanted, local_handlers(allow_readable_files=settings.allow_readable_files)))


async def _report_of(start: Callable[[str], Any], manifest: str) -> "Report":
    from jelou_rotation.report import Report, RowsNeedAttention

    await _require_prefect()
    state = await start(manifest)
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
    from tasks.runs import report_folder

    print(summary_text(report, width=shutil.get_terminal_size((120, 24)).columns))
    print(f"{report.effort()} The report is in {report_folder(Settings.load(), report.run)}")


def _new_key(_options: argparse.Namespace) -> int:
    from jelou_rotation.records import new_key

    print(new_key())
    return 0


def _rekey(_options: argparse.Namespace) -> int:
    async def work(store: "Store") -> int:
        count = await store.rekey()
        print(f"{count:,} records are encrypted with the first key now; the others may be dropped.")
        return 0

    return _with_store(work)


def _unpark(options: argparse.Namespace) -> int:
    async def work(store: "Store") -> int:
        for project_id in options.projects:
            await store.unpark(project_id, getpass.getuser())
        return 0

    return _with_store(work)


def _show_credential(options: argparse.Namespace) -> int:
    if not options.pipe and not sys.stdout.isatty():
        message = "standard output is no terminal, and what is printed are credentials: say --pipe if that is meant"
        raise SettingsError([Fault("credential show", message)])

    async def work(store: "Store") -> int:
        from jelou_rotation.life import document

        record = (await store.read([options.project])).get(options.project)
        if record is None:
            print(f"jelou-rotation: no record of {options.project!r}.", file=sys.stderr)
            return 1
        print(json.dumps(json.loads(document(record)), indent=2))
        return 0

    return _with_store(work)


def _with_store(work: "Callable[[Store], Awaitable[int]]") -> int:
    from jelou_rotation.references import local_handlers
    from jelou_rotation.rotation import open_store
    from jelou_rotation.settings import StoreSettings

    async def run() -> int:
        settings = StoreSettings.load()
        handlers = local_handlers(allow_readable_files=settings.allow_readable_files)
        async with open_store(settings, handlers | {"block": _read_block}) as store:
            return await work(store)

    return asyncio.run(run())


async def _read_block(target: str) -> str:
    _quieten_prefect()
    from tasks.secret_blocks import read_secret_block

    return await read_secret_block(target)


def _schema(_options: argparse.Namespace) -> int:
    from jelou_rotation.manifest import json_schema

    print(json.dumps(json_schema(), indent=2))
    return 0


def _simulate(options: argparse.Namespace) -> int:
    from jelou_rotation.simulator import Simulator, Switches, passing_faults

    if options.switches:
        for name, field in Switches.model_fields.items():
            print(f"{name}={field.default}\n    {field.description}")
        return 0
    simulator = Simulator(_switches(options.switch))
    for fault in passing_faults(options.flaky):
        simulator.add_fault(fault)
    for number in range(1, options.projects + 1):
        simulator.add_project(f"prj_{number}")
    asyncio.run(_serve(simulator, options.port))
    return 0


def _switches(given: Sequence[str]) -> "Switches":
    from pydantic import ValidationError

    from jelou_rotation.simulator import Switches

    try:
        return Switches.model_validate(dict(switch.partition("=")[::2] for switch in given))
    except ValidationError as error:
        faults = [Fault("--switch", each["msg"], field=".".join(map(str, each["loc"]))) for each in error.errors()]
        raise SettingsError(faults) from None


async def _serve(simulator: "Simulator", port: int) -> None:
    from jelou_rotation.simulator import listening

    try:
        async with listening(simulator, port=port) as url:
            print(SIMULATOR_READY.format(url=url), flush=True)
            await asyncio.Event().wait()
    except OSError as error:
        raise SettingsError([Fault("--port", f"{port} cannot be used ({error.strerror})")]) from None


if __name__ == "__main__":
    sys.exit(main())
