"""A real Prefect server with the deployments of prefect.yaml and a real process worker, for the tests that need one."""

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import httpx
from prefect.server.concurrency.lease_storage import filesystem

from jelou_rotation.simulator import Simulator

REPOSITORY = Path(__file__).parents[2]
POOL = "jelou-rotation"
PATIENCE_SECONDS = 180
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}

T = TypeVar("T")


def eventually(look: Callable[[], T]) -> T:
    """What `look` finds, as soon as it finds anything."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (found := look()):
        assert time.monotonic() < deadline, f"not within {PATIENCE_SECONDS} seconds"
        # The server pays for each look, and whoever works there waits.
        time.sleep(0.25)
    return found


@dataclass(frozen=True)
class Prefect:
    """A Prefect server with the deployments and one worker."""

    api: httpx.Client
    reports: Path
    home: Path
    clone: Path
    environment: dict[str, str]

    @property
    def ui(self) -> str:
        """The address a person opens."""
        return str(self.api.base_url.join("/"))

    def start(self, manifest: str) -> str:
        """The id of a new run of `rotate-manual`."""
        parameters = {"manifest": manifest, "mode": "rotate"}
        return self.post(f"/deployments/{self.deployment()['id']}/create_flow_run", parameters=parameters)["id"]

    def run(self, name: str, **parameters: Any) -> str:
        """The id of a new run of the deployment FLOW/NAME."""
        deployment = self.get(f"/deployments/name/{name}")
        return self.post(f"/deployments/{deployment['id']}/create_flow_run", parameters=parameters)["id"]

    def deploy(self, name: str = "") -> None:
        """All deployments, or the one with that name."""
        chosen = ("--name", name) if name else ("--all",)
        command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", *chosen]
        subprocess.run(command, env=self.environment, cwd=self.clone, check=True)

    def worker(self, *options: str) -> AbstractContextManager[None]:
        """One more, until the end of the block."""
        return _process("worker", "start", "--pool", POOL, *options, env=self.environment, cwd=self.home)

    def deployment(self) -> dict[str, Any]:
        """`rotate-manual`."""
        return self.get("/deployments/name/rotate-credentials/rotate-manual")

    def cancel(self, run_id: str) -> None:
        self.post(f"/flow_runs/{run_id}/set_state", state={"type": "CANCELLING", "name": "Cancelling"})

    def log(self, run_id: str) -> str:
        found = self.post("/logs/filter", logs={"flow_run_id": {"any_": [run_id]}})
        return "\n".join(line["message"] for line in found)

    def let_the_lease_run_out(self) -> None:
        """Of the lock that some run holds: as if its time were over."""

        async def run_out() -> None:
            storage = filesystem.ConcurrencyLeaseStorage(self.home / "concurrency_leases")
            (lease,) = await storage.read_active_lease_ids()
            assert await storage.renew_lease(lease, timedelta(0))

        asyncio.run(run_out())

    def process_of(self, run_id: str) -> int:
        """The worker records it as HOST:PID."""
        return int(self.get(f"/flow_runs/{run_id}")["infrastructure_pid"].rpartition(":")[2])

    def end_of(self, run_id: str) -> dict[str, Any]:
        return eventually(lambda: self.last_state(run_id))

    def last_state(self, run_id: str) -> dict[str, Any] | None:
        state = self.get(f"/flow_runs/{run_id}")["state"]
        return state if state["type"] in FINAL else None

    def report(self, run_id: str) -> dict[str, Any]:
        (report,) = self.reports.glob(f"*-{run_id[:8]}/report.json")
        return json.loads(report.read_text())

    def report_artifact(self, run_id: str) -> str:
        found = self.post("/artifacts/filter", artifacts={"flow_run_id": {"any_": [run_id]}})
        (page,) = (artifact["data"] for artifact in found if artifact["key"] == "jelou-rotation-report")
        return page

    def get(self, path: str) -> Any:
        return self.api.get(path).raise_for_status().json()

    def post(self, path: str, **body: Any) -> Any:
        return self.api.post(path, json=body).raise_for_status().json()


@contextmanager
def live_prefect(
    folder: Path, database: str, simulator: Simulator, settings: dict[str, str], *, deployment: str = ""
) -> Iterator[Prefect]:
    """
    The server and its worker until the end of the block.

    `database` is the address of an empty one; `settings` what the runs find in their environment; `deployment` the only
    one that is wanted.
    """
    with live_server(folder, database, simulator, settings) as prefect, prefect.worker():
        prefect.deploy(deployment)
        yield prefect


@contextmanager
def live_server(folder: Path, database: str, simulator: Simulator, settings: dict[str, str]) -> Iterator[Prefect]:
    """The server and its work pool, without a deployment or a worker."""
    home, reports = folder / "prefect", folder / "reports"
    ours = _server_settings(home, database) | _worker_settings(simulator, reports)
    environment = _clean_environment() | ours | settings
    with _process("server", "start", env=environment), _api(environment["PREFECT_API_URL"]) as api:
        prefect = Prefect(api, reports, home, _clone(folder / "clone"), environment)
        prefect.post("/work_pools/", name=POOL, type="process")
        yield prefect


def _clone(folder: Path) -> Path:
    """A working copy without a developer's .env, which a run would read."""
    folder.mkdir()
    shutil.copy(REPOSITORY / "prefect.yaml", folder)
    for package in ("flows", "tasks", "jelou_rotation"):
        shutil.copytree(REPOSITORY / package, folder / package)
    return folder


def _clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("JELOU_", "PREFECT_"))}


def _server_settings(home: Path, database: str) -> dict[str, str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    return {
        "DO_NOT_TRACK": "1",
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": database,
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # No run by the clock beside those of the test.
        "PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED": "false",
        # As deployments/README.md wants it, and looked after sooner.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": filesystem.__name__,
        "PREFECT_SERVER_SERVICES_REPOSSESSOR_LOOP_SECONDS": "1",
        "PREFECT_WORKER_QUERY_SECONDS": "0.5",
    }


def _worker_settings(simulator: Simulator, reports: Path) -> dict[str, str]:
    return {
        "JELOU_BASE_URL": f"{simulator.base_url}/jelouapi/v1",
        "JELOU_API_KEY": "demo-key",
        "JELOU_ALLOW_PRIVATE_HOSTS": "true",
        "JELOU_REPORT_DIR": str(reports),
        "JELOU_SECRETS_DIR": str(reports / "no-secrets-here"),
    }


# A worker turns SIGTERM into SIGINT, to which whatever a shell starts in the background is deaf.
AWAKE = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.executable, [sys.executable, "-m", "prefect", *sys.argv[1:]])
"""


@contextmanager
def _process(*arguments: str, env: dict[str, str], cwd: Path | None = None) -> Iterator[None]:
    """A Prefect command that runs until the end of the block, and whatever it has started."""
    command = [sys.executable, "-c", AWAKE, *arguments]
    process = subprocess.Popen(command, env=env, cwd=cwd, start_new_session=True)
    try:
        yield
    finally:
        # A worker told to end takes a flow that still runs with it, whose process is in a group of its own.
        process.terminate()
        process.wait(PATIENCE_SECONDS)


@contextmanager
def _api(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=20) as api:
        eventually(lambda: _answers(api))
        yield api


def _answers(api: httpx.Client) -> bool:
    try:
        return api.get("/health").is_success
    except httpx.TransportError:
        return False
