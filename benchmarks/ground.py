"""The ground the contestants run on: a gateway, a Prefect server and a folder, all gone at the end."""

import json
import os
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure import cpu_seconds, run

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "deployments"))

from local_server import (  # noqa: E402 - found by the line above
    Child,
    api_url,
    clean_environment,
    free_port,
    kept_running,
    prefect_server,
    wait_for,
)

_SETTLES_WITHIN = 120
_IDLE_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class Contestant:
    """
    `command` is what to start, on this ground, for so many projects; it takes part up to `most`
    and in so many `rounds`.

    `server` is the Prefect server it uses: running, temporary (one of its own) or none.
    """

    name: str
    label: str
    command: "Callable[[Ground, int], Sequence[str]]"
    server: str = "none"
    most: int = 1_000_000
    rounds: int = 99


@dataclass(frozen=True, slots=True)
class Result:
    """
    One run, or the medians of several; `fastest` and `slowest` are their wall times.

    `server_cpu` is what the running Prefect server worked for it, in seconds, and `task_runs` what it then knew of.
    `busiest` is the largest share of one core that the gateway took in any second.
    """

    seconds: float
    cpu: float
    peak_mb: float
    requests: int
    busiest: float
    server_cpu: float | None
    task_runs: int | None
    fastest: float
    slowest: float


class Ground:
    """`concurrency` is how many projects everybody works on at once."""

    def __init__(self, folder: Path, gateway: str, concurrency: int, prefect: str, server: Child) -> None:
        self.folder = folder
        self.gateway = gateway
        self.concurrency = concurrency
        self._prefect = prefect
        self._server = server

    def manifest(self, projects: int) -> Path:
        """One that gives every project the same new credential."""
        path = self.folder / f"{projects}.yaml"
        rows = "".join(f"  prj_{number}: {{}}\n" for number in range(projects))
        path.write_text(f"defaults: {{authType: bearer, authorization: env:NEW_CREDENTIAL}}\nprojects:\n{rows}")
        return path

    def run(self, contestant: Contestant, projects: int) -> Result:
        """One run in a fresh process. Raises SystemExit with its last words when it fails."""
        command, environment = contestant.command(self, projects), self._environment(contestant.server)
        server = self._server if contestant.server == "running" else None
        worked, recorded = self._server_state(server)
        ask(f"{self.gateway}/counters")
        cost = run(command, environment, self.folder)
        seen = ask(f"{self.gateway}/counters")
        if server:
            _let_settle(server)
        worked_then, recorded_then = self._server_state(server)
        return Result(
            cost.seconds,
            cost.cpu_seconds,
            cost.peak_mb,
            sum(seen["requests"].values()),
            seen["busiest"],
            worked_then - worked if server else None,
            recorded_then - recorded if server else None,
            cost.seconds,
            cost.seconds,
        )

    def _server_state(self, server: Child | None) -> tuple[float, int]:
        if not server:
            return 0.0, 0
        return cpu_seconds(server.process.pid), int(ask(f"{self._prefect}/task_runs/count", {}))

    def _environment(self, server: str) -> dict[str, str]:
        mine = {
            "DO_NOT_TRACK": "1",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_HOME": str(self.folder / "home"),
            "JELOU_BASE_URL": self.gateway,
            "JELOU_API_KEY": "key",
            "JELOU_CONCURRENCY": str(self.concurrency),
            "NEW_CREDENTIAL": "the-new-credential",
        }
        return clean_environment() | mine | ({"PREFECT_API_URL": self._prefect} if server == "running" else {})


@contextmanager
def open_ground(latency_ms: float, concurrency: int, per_second: float | None = None) -> Iterator[Ground]:
    port, prefect_port = free_port(), free_port()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        command = [sys.executable, str(HERE / "gateway.py"), "--port", str(port), "--latency-ms", str(latency_ms)]
        if per_second:
            command += ["--per-second", str(per_second)]
        gateway = stack.enter_context(kept_running("gateway", command, os.environ, folder))
        wait_for(f"http://127.0.0.1:{port}/counters", gateway)
        home = folder / "server"
        home.mkdir()
        server = stack.enter_context(prefect_server(home, prefect_port))
        yield Ground(folder, f"http://127.0.0.1:{port}", concurrency, api_url(prefect_port), server)


def median(runs: Sequence[Result]) -> Result:
    """Of every figure by itself."""

    def middle(figure: Callable[[Result], Any]) -> Any:
        figures = [figure(each) for each in runs]
        return None if None in figures else statistics.median(figures)

    return Result(
        middle(lambda each: each.seconds),
        middle(lambda each: each.cpu),
        middle(lambda each: each.peak_mb),
        middle(lambda each: each.requests),
        max(each.busiest for each in runs),
        middle(lambda each: each.server_cpu),
        middle(lambda each: each.task_runs),
        min(each.seconds for each in runs),
        max(each.seconds for each in runs),
    )


def ask(url: str, content: Any = None) -> Any:
    """The JSON that answers a GET, or a POST where there is something to send."""
    body = None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310 - our own servers
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - as above
        return json.load(answer)


def _let_settle(server: Child) -> None:
    """A server goes on recording after the run has ended, and that is not to slow down the next one."""
    deadline = time.monotonic() + _SETTLES_WITHIN
    while time.monotonic() < deadline:
        before = cpu_seconds(server.process.pid)
        time.sleep(1)
        if cpu_seconds(server.process.pid) - before < _IDLE_SHARE:
            return
