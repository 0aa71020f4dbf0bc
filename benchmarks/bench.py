"""
The speed of jelou-rotation beside the least that is possible and beside what people write first, in one go.

Every contestant sends the same requests for each project: GET for all of them, then GET, PATCH, GET. Each run is a
fresh process. Contestants take turns, so that whatever else the machine does hits all of them.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import measure
import picture

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "deployments"))

from local_server import Child, api_url, clean_environment, free_port, kept_running, prefect_server, wait_for  # noqa: E402

PACKAGES = ("jelou-rotation", "prefect", "httpx", "httpx-aiohttp", "aiohttp")
BUSY_SHARE = 0.9
SETTLES_WITHIN = 120
HUGE = 100_000
HUGE_LATENCY_MS = 5
FEW = 5
QUICK = ["--rounds", "1", "--sizes", "100,1000", "--only", "running,floor,curl"]


@dataclass(frozen=True)
class Contestant:
    """`server` is the Prefect server it needs: none, a temporary one of its own, or one that is running."""

    name: str
    label: str
    command: Callable[[int], list[str]]
    server: str = "none"
    most_projects: int = HUGE


@dataclass(frozen=True)
class Result:
    """One run."""

    contestant: str
    projects: int
    cost: measure.Cost
    server_cpu_seconds: float | None
    task_runs: int | None
    requests: Mapping[str, int]
    gateway_busiest: float
    gateway_late_ms: float


class Bench:
    """The gateway, the Prefect server and the folder they share, from `open` to the end of the stack."""

    def __init__(self, stack: ExitStack, latency_ms: float, concurrency: int) -> None:
        self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        self.concurrency = concurrency
        port, self._prefect_port = free_port(), free_port()
        self.gateway = f"http://127.0.0.1:{port}"
        gateway = (sys.executable, str(HERE / "gateway.py"), "--port", str(port), "--latency-ms", str(latency_ms))
        wait_for(
            f"{self.gateway}/counters",
            stack.enter_context(kept_running("gateway", gateway, os.environ, self.folder)),
        )
        self._stack = stack
        self._server: Child | None = None
        self.contestants = contestants(self)

    def start_server(self) -> None:
        home = self.folder / "server"
        home.mkdir()
        self._server = self._stack.enter_context(prefect_server(home, self._prefect_port))

    def manifest(self, projects: int) -> Path:
        path = self.folder / f"{projects}.yaml"
        if not path.exists():
            rows = "".join(f"  prj_{number}: {{}}\n" for number in range(projects))
            path.write_text(f"defaults: {{authType: bearer, authorization: env:NEW_CREDENTIAL}}\nprojects:\n{rows}")
        return path

    def environment(self, server: str) -> dict[str, str]:
        mine = {
            "DO_NOT_TRACK": "1",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_HOME": str(self.folder / "home"),
            "JELOU_BASE_URL": self.gateway,
            "JELOU_API_KEY": "key",
            "JELOU_CONCURRENCY": str(self.concurrency),
            "NEW_CREDENTIAL": "the-new-credential",
        }
        running = {"PREFECT_API_URL": api_url(self._prefect_port)} if server == "running" else {}
        return clean_environment() | mine | running

    def run(self, contestant: Contestant, projects: int) -> Result:
        server = self._server if contestant.server == "running" else None
        recorded, worked = self._recorded(server), measure.cpu_seconds(server.process.pid) if server else 0.0
        _ask(f"{self.gateway}/counters")
        cost = measure.run(contestant.command(projects), self.environment(contestant.server), self.folder)
        seen = _ask(f"{self.gateway}/counters")
        if server:
            self._let_settle(server)
        return Result(
            contestant.name,
            projects,
            cost,
            measure.cpu_seconds(server.process.pid) - worked if server else None,
            self._recorded(server) - recorded if server else None,
            seen["requests"],
            seen["busiest"],
            seen["late_ms"],
        )

    def _recorded(self, server: Child | None) -> int:
        return int(_ask(f"{api_url(self._prefect_port)}/task_runs/count", b"{}")) if server else 0

    def _let_settle(self, server: Child) -> None:
        """The server goes on writing events after the run; that is not to slow down the next one."""
        deadline = time.monotonic() + SETTLES_WITHIN
        while time.monotonic() < deadline:
            before = measure.cpu_seconds(server.process.pid)
            time.sleep(1)
            if measure.cpu_seconds(server.process.pid) - before < 0.2:
                return
