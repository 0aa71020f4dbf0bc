"""The commands that need no Prefect: the records, the schema, the simulator, the export."""

import argparse
import asyncio
import getpass
import json
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jelou_rotation.errors import Fault, SettingsError

if TYPE_CHECKING:
    from jelou_rotation.records.store import Store
    from jelou_rotation.references import Handler
    from jelou_rotation.simulator import Simulator, Switches

# What only one command needs is imported inside it, so that --help answers at once.

SIMULATOR_READY = """\
A simulated Jelou listens at {url} (its own page says what else it can do). In another terminal:

  export JELOU_BASE_URL={url}/jelouapi/v1 JELOU_API_KEY=demo-key JELOU_ALLOW_PRIVATE_HOSTS=true
  jelou-rotation plan MANIFEST

Ctrl-C ends it.
"""


def new_key(_options: argparse.Namespace) -> int:
    from jelou_rotation.records import new_key

    print(new_key())
    return 0


def rekey(options: argparse.Namespace) -> int:
    async def work(store: "Store") -> int:
        count = await store.rekey()
        print(f"{count:,} records are encrypted with the first key now; the others may be dropped.")
        return 0

    return _with_store(options, work)


def unpark(options: argparse.Namespace) -> int:
    async def work(store: "Store") -> int:
        for project_id in options.projects:
            await store.unpark(project_id, getpass.getuser())
        return 0

    return _with_store(options, work)


def show_credential(options: argparse.Namespace) -> int:
    if not options.pipe and not sys.stdout.isatty():
        message = "standard output is no terminal, and what is printed are credentials: say --pipe if that is meant"
        raise SettingsError([Fault("credential show", message)])

    async def work(store: "Store") -> int:
        from jelou_rotation.work import document

        record = (await store.read([options.project])).get(options.project)
        if record is None:
            print(f"jelou-rotation: no record of {options.project!r}.", file=sys.stderr)
            return 1
        print(json.dumps(json.loads(document(record)), indent=2))
        return 0

    return _with_store(options, work)


def _with_store(options: argparse.Namespace, work: "Callable[[Store], Awaitable[int]]") -> int:
    from jelou_rotation.rotation import open_store
    from jelou_rotation.settings import StoreSettings

    async def run() -> int:
        settings = StoreSettings.load()
        async with open_store(settings, _handlers(options, readable=settings.allow_readable_files)) as store:
            return await work(store)

    return asyncio.run(run())


def _handlers(options: argparse.Namespace, *, readable: bool) -> "Mapping[str, Handler]":
    from jelou_rotation.references import local_handlers

    return local_handlers(allow_readable_files=readable) | {"block": options.read_block}


def schema(_options: argparse.Namespace) -> int:
    from jelou_rotation.manifest import json_schema

    print(json.dumps(json_schema(), indent=2))
    return 0


def export(options: argparse.Namespace) -> int:
    from jelou_rotation.export import export
    from jelou_rotation.rotation import open_gateway
    from jelou_rotation.settings import Settings

    projects = [*options.projects, *_listed(options.listed)]
    if not projects:
        raise SettingsError([Fault("export", "name the projects, or give a file that lists them with --from")])

    async def run() -> int:
        settings = Settings.load()
        handlers = _handlers(options, readable=settings.allow_readable_files)
        async with open_gateway(settings, handlers) as gateway:
            found = await export(gateway, projects, settings.concurrency)
        print(found.text, end="")
        for trouble in found.troubles:
            print(f"jelou-rotation: {trouble}", file=sys.stderr)
        return 1 if found.troubles else 0

    return asyncio.run(run())


def _listed(source: str | None) -> list[str]:
    """The projectIds in a file or on standard input, one a line; empty lines and those with # do not count."""
    if source is None:
        return []
    try:
        text = sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise SettingsError([Fault("--from", f"cannot be read ({type(error).__name__})")]) from None
    return [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def simulate(options: argparse.Namespace) -> int:
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
