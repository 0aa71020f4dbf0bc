"""The deployments of prefect.yaml on a real Prefect server, run by a real process worker."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest

from jelou_rotation.simulator import Fault, Simulator, running

REPOSITORY = Path(__file__).parents[2]
POOL = "jelou-rotation"
PATIENCE_SECONDS = 60
HANGING_SECONDS = 600
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}

T = TypeVar("T")


def eventually(look: Callable[[], T]) -> T:
    """What `look` finds, as soon as it finds anything."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (found := look()):
        assert time.monotonic() < deadline, f"not within {PATIENCE_SECONDS} seconds"
        time.sleep(0.05)
    return found


@dataclass(frozen=True)
class Prefect:
    """A Prefect server with the deployments and one worker."""

    api: httpx.Client
    reports: Path

    def start(self, manifest: str) -> str:
        """The id of a new run of `rotate-manual`."""
        deployment = self.get("/deployments/name/rotate-credentials/rotate-manual")
        parameters = {"manifest": manifest, "mode": "rotate"}
        return self.post(f"/deployments/{deployment['id']}/create_flow_run", parameters=parameters)["id"]

    def cancel(self, run_id: str) -> None:
        self.post(f"/flow_runs/{run_id}/set_state", state={"type": "CANCELLING", "name": "Cancelling"})

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
        return self._ask("GET", path)

    def post(self, path: str, **body: Any) -> Any:
        return self._ask("POST", path, json=body)

    def _ask(self, method: str, path: str, **body: Any) -> Any:
        # 503 is SQLite busy with another writer, and nothing was done. Prefect's own client asks again as well.
        answer = eventually(lambda: _unless_busy(self.api.request(method, path, **body)))
        return answer.raise_for_status().json()


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    simulator = Simulator()
    with running(simulator):
        yield simulator


@pytest.fixture(scope="module")
def prefect(simulator: Simulator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prefect]:
    home, reports = tmp_path_factory.mktemp("prefect"), tmp_path_factory.mktemp("reports")
    clone = _clone(tmp_path_factory.mktemp("clone"))
    environment = _clean_environment() | _server_settings(home) | _worker_settings(simulator, reports)
    with _process("server", "start", env=environment), _api(environment["PREFECT_API_URL"]) as api:
        _prefect("work-pool", "create", POOL, "--type", "process", env=environment)
        for _first_and_again in range(2):
            _prefect("--no-prompt", "deploy", "--all", env=environment, cwd=clone)
        with _process("worker", "start", "--pool", POOL, env=environment, cwd=home):
            yield Prefect(api, reports)


def _clone(folder: Path) -> Path:
    """A working copy without a developer's .env, which a run would read."""
    shutil.copy(REPOSITORY / "prefect.yaml", folder)
    for package in ("flows", "tasks", "jelou_rotation"):
        shutil.copytree(REPOSITORY / package, folder / package)
    return folder


def _clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("JELOU_", "PREFECT_"))}


def _server_settings(home: Path) -> dict[str, str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    return {
        "DO_NOT_TRACK": "1",
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_WORKER_QUERY_SECONDS": "0.5",
    }


def _worker_settings(simulator: Simulator, reports: Path) -> dict[str, str]:
    return {
        "JELOU_BASE_URL": f"{simulator.base_url}/jelouapi/v1",
        "JELOU_API_KEY": "demo-key",
        "JELOU_ALLOW_PRIVATE_HOSTS": "true",
        "JELOU_REPORT_DIR": str(reports),
        "JELOU_SECRETS_DIR": str(reports / "no-secrets-here"),
        # One row after the other, so that a PATCH that hangs holds up all rows behind it.
        "JELOU_CONCURRENCY": "1",
        "JELOU_TIMEOUT_SECONDS": str(HANGING_SECONDS),
        "NEW_1": "canary-1",
        "NEW_2": "canary-2",
        "NEW_3": "canary-3",
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


def _unless_busy(answer: httpx.Response) -> httpx.Response | None:
    return None if answer.status_code == 503 else answer


def _prefect(*arguments: str, env: dict[str, str], cwd: Path | None = None) -> None:
    subprocess.run([sys.executable, "-m", "prefect", *arguments], env=env, cwd=cwd, check=True)


@pytest.fixture
def projects(simulator: Simulator):
    simulator.faults.clear()
    for number in (1, 2, 3):
        simulator.add_project(f"prj_{number}")
    return simulator.projects


@pytest.fixture
def second_patch_hangs(simulator: Simulator, projects):
    """The first PATCH is answered at once, any other hardly ever."""
    simulator.add_fault(Fault(kind="delay", delay_seconds=0.001, method="PATCH", times=1))
    simulator.add_fault(Fault(kind="delay", delay_seconds=HANGING_SECONDS, method="PATCH"))


MANIFEST = """\
projectId,authType,authorization
prj_1,bearer,env:NEW_1
prj_2,bearer,env:NEW_2
prj_3,bearer,env:NEW_3
"""


def credentials(projects):
    return {project.authorization for project in projects.values()}


def patches_received(projects):
    return sum(len(project.received) for project in projects.values())


def test_a_worker_rotates_and_its_report_is_in_the_ui(prefect: Prefect, projects):
    run_id = prefect.start(MANIFEST)

    state = prefect.end_of(run_id)

    assert (state["name"], state["message"]) == ("Completed", "All 3 projects are as wanted: 3 rotated.")
    assert credentials(projects) == {"canary-1", "canary-2", "canary-3"}
    assert state["message"] in prefect.report_artifact(run_id)


def test_all_deployments_are_registered_and_only_two_are_scheduled(prefect: Prefect):
    found = prefect.post("/deployments/filter")

    scheduled = {deployment["name"]: len(deployment["schedules"]) for deployment in found}
    assert scheduled == {"rotate-scheduled": 1, "close-overlaps": 1, "onboard-bulk": 0, "rotate-manual": 0}


def test_a_cancelled_run_stops_writing_and_reports_what_was_done(prefect: Prefect, projects, second_patch_hangs):
    run_id = prefect.start(MANIFEST)
    eventually(lambda: patches_received(projects) == 2)
    met_it = prefect.start(MANIFEST)
    refusal = prefect.end_of(met_it)
    prefect.cancel(run_id)

    state = prefect.end_of(run_id)

    assert refusal["name"] == "Cancelled"
    assert refusal["message"] == "Deployment concurrency limit reached."
    assert state["name"] == "Cancelled"
    outcomes = {row["projectId"]: row["outcome"] for row in prefect.report(run_id)["projects"]}
    assert sorted(outcomes.values()) == ["not_started", "rotated", "unknown"]
    assert {name for name, outcome in outcomes.items() if outcome == "rotated"} == {
        name for name, project in projects.items() if project.authorization != "old"
    }
    assert "2 of 3 projects need attention" in prefect.report_artifact(run_id)
    assert patches_received(projects) == 2


def test_after_a_killed_run_the_next_one_finishes_the_rows_with_the_same_values(
    prefect: Prefect, simulator: Simulator, projects, second_patch_hangs
):
    killed = prefect.start(MANIFEST)
    eventually(lambda: patches_received(projects) == 2)
    os.kill(prefect.process_of(killed), signal.SIGKILL)
    assert prefect.end_of(killed)["name"] == "Crashed"
    simulator.faults.clear()

    state = prefect.end_of(prefect.start(MANIFEST))

    assert state["name"] == "Completed"
    assert patches_received(projects) == 5
    for number in (1, 2, 3):
        sent = [body["authorization"] for body in projects[f"prj_{number}"].received]
        assert set(sent) == {f"canary-{number}"}
        assert projects[f"prj_{number}"].authorization == f"canary-{number}"
