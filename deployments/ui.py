"""
`make ui`: the Prefect UI with every deployment, a worker, the alarms, and a simulated Jelou with example projects.

Everything stays on this machine and ends with Ctrl-C. With --home the runs are still there the next time.
"""

import argparse
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import NoReturn

import yaml
from local_server import (
    PREFECT,
    Child,
    PrefectBlock,
    api_url,
    clean_environment,
    kept_running,
    prefect_server,
    server_settings,
)

from jelou_rotation.records import new_key
from jelou_rotation.simulator import Simulator, running

REPOSITORY = Path(__file__).parents[1]
WATCH_SECONDS = 0.5
# The credential of the first ones is in the worker's environment, that of the others is made by the first rotation.
NAMED = ("acme", "bolivar", "condor")
MADE_HERE = ("galapagos", "hidalgo")
STRANGER = "zeta"
MANIFEST = """\
# The example of `make ui`. It holds no credential, only where each one is found.
defaults:
  authType: bearer
projects:
"""
MADE_HERE_ROW = """\
  {project}:
    authorization: generate
    rotateEvery: 30d
    publishTo: block:secret/{project}
"""
READY = """
Ready.

  the Prefect UI     http://127.0.0.1:{port}
  its password       {login}      (all of it, with the colon)
  a simulated Jelou  {jelou}
  the manifest       {manifest}
  logs               {home}

First: Deployments, rotate-manual, Run, Custom run, Submit. That is a plan and writes nothing; the report is on the
run's Artifacts tab. Then once more with mode rotate. Both runs end Failed, because {stranger} is not at Jelou, on
purpose: the report says what to do about it.

Ctrl-C ends everything.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Start it all, and end it all at Ctrl-C or when a part of it ends by itself."""
    options = parse(arguments)
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        # Also in the background of a shell, which makes SIGINT ignored there, for us and for whatever we start.
        signal.signal(getattr(signal, name), interrupt)
    require_free({"--port": options.port, "--simulator-port": options.simulator_port})
    try:
        with ExitStack() as everything:
            serve(options, everything)
    except KeyboardInterrupt:
        say("Ended.")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make ui", description=__doc__)
    parser.add_argument("--port", type=port_number, default=4300, help="of the Prefect UI; default: 4300")
    parser.add_argument(
        "--simulator-port", type=port_number, default=4010, help="of the simulated Jelou; default: 4010"
    )
    parser.add_argument("--home", type=Path, metavar="DIR", help="keep the server's database here; default: nowhere")
    return parser.parse_args(arguments)


def port_number(text: str) -> int:
    if not (text.isdecimal() and 0 < int(text) < 2**16):
        raise argparse.ArgumentTypeError("expected a number from 1 to 65535")
    return int(text)


def interrupt(*_signal: object) -> NoReturn:
    raise KeyboardInterrupt


def require_free(ports: dict[str, int]) -> None:
    for option, port in ports.items():
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError as error:
            why = os.strerror(error.errno)
            sys.exit(f"make ui: port {port} cannot be used ({why}). Choose another: make ui ARGS='{option} N'")


def serve(options: argparse.Namespace, everything: ExitStack) -> None:
    """Everything in its order; each part is ended in the reverse one."""
    scratch = Path(everything.enter_context(tempfile.TemporaryDirectory(prefix="jelou-ui-")))
    home = own_folder(options.home.expanduser().resolve() if options.home else scratch / "prefect")
    login = kept(home / "login", f"admin:{secrets.token_urlsafe(9)}")
    lock = {"PREFECT_SERVER_API_AUTH_STRING": login, "PREFECT_SERVER_ENCRYPTION_KEY": kept(home / "key", new_key())}

    say("Starting a simulated Jelou and a Prefect server, some ten seconds ...")
    simulator = Simulator()
    jelou = everything.enter_context(running(simulator, port=options.simulator_port))
    server = everything.enter_context(prefect_server(home, options.port, lock))
    environment = clean_environment() | server_settings(home, options.port) | {"PREFECT_API_AUTH_STRING": login}
    say("Making the work pool, the lock and the alarms ...")
    command((sys.executable, "-m", "flows", "set-up"), environment, REPOSITORY)
    say("Registering the deployments ...")
    manifest = write_manifest(scratch / "customers.yaml")
    command((*PREFECT, "--no-prompt", "deploy", "--all"), environment, clone(scratch / "clone", manifest))
    say("Starting a worker ...")
    add_projects(simulator, api_url(options.port), login)
    worker = everything.enter_context(prefect_worker(environment | worker_settings(jelou, scratch), home))
    print(READY.format(port=options.port, login=login, jelou=jelou, manifest=manifest, home=home, stranger=STRANGER))
    watch(server, worker)


def own_folder(path: Path) -> Path:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def kept(path: Path, new: str) -> str:
    """What the file says; it is made the first time. The server's database is of no use without its key."""
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(new)
    return path.read_text()


def command(arguments: Sequence[str], environment: Mapping[str, str], folder: Path) -> None:
    """Run a command to its end; what it says is only of interest when it fails."""
    done = subprocess.run(arguments, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(arguments[1:])} failed:\n{done.stdout}{done.stderr}")


def write_manifest(path: Path) -> Path:
    named = (f"  {project}:\n    authorization: env:{variable(project)}\n" for project in (*NAMED, STRANGER))
    path.write_text(MANIFEST + "".join([*named, *(MADE_HERE_ROW.format(project=each) for each in MADE_HERE)]))
    return path


def clone(folder: Path, manifest: Path) -> Path:
    """The deployments on the example manifest. Links, so that the next run has what somebody edits meanwhile."""
    folder.mkdir()
    for package in ("flows", "tasks", "jelou_rotation"):
        (folder / package).symlink_to(REPOSITORY / package, target_is_directory=True)
    deployments = yaml.safe_load((REPOSITORY / "prefect.yaml").read_text())
    for deployment in deployments["deployments"]:
        deployment["parameters"]["manifest"] = str(manifest)
    (folder / "prefect.yaml").write_text(yaml.safe_dump(deployments, sort_keys=False))
    return folder


def add_projects(simulator: Simulator, api: str, login: str) -> None:
    """Their receivers accept the old credential and the new one, as they should before a rotation."""
    for project in NAMED:
        simulator.add_project(project)
        simulator.receivers[project].accepts.add(token(project))
    for project in MADE_HERE:
        simulator.add_project(project)
        simulator.receivers[project].accepts = PrefectBlock(api, project, login)


def variable(project: str) -> str:
    return f"{project.upper()}_TOKEN"


def token(project: str) -> str:
    return f"new-credential-of-{project}"


def worker_settings(jelou: str, scratch: Path) -> dict[str, str]:
    """What every run finds in its environment. The records go with the simulated Jelou, which forgets as well."""
    return {variable(project): token(project) for project in (*NAMED, STRANGER)} | {
        "JELOU_BASE_URL": f"{jelou}/jelouapi/v1",
        "JELOU_API_KEY": "demo-key",
        "JELOU_ALLOW_PRIVATE_HOSTS": "true",
        "JELOU_STORE_URL": f"sqlite:///{scratch}/records.db",
        "JELOU_STORE_KEY": new_key(),
        "JELOU_REPORT_DIR": f"{scratch}/reports",
        "JELOU_SECRETS_DIR": f"{scratch}/no-secrets-here",
    }


def prefect_worker(environment: Mapping[str, str], home: Path) -> AbstractContextManager[Child]:
    arguments = (*PREFECT, "worker", "start", "--pool", "jelou-rotation", "--name", "make-ui")
    return kept_running("worker", arguments, environment | {"PREFECT_WORKER_QUERY_SECONDS": "2"}, home)


def watch(*children: Child) -> NoReturn:
    """Until Ctrl-C, or until one of them ends by itself."""
    while True:
        for child in children:
            child.require_alive()
        time.sleep(WATCH_SECONDS)


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
