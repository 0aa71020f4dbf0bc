"""A Prefect server of its own on this machine, for the demo and for `make ui`."""

import base64
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

STARTS_WITHIN = 120
ENDS_WITHIN = 20
PREFECT = (sys.executable, "-m", "prefect")


@dataclass(frozen=True)
class Child:
    """A process that runs until the end of a block, and the file with what it says."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def require_alive(self) -> None:
        """Raises SystemExit with the end of its log when it is not."""
        if self.process.poll() is not None:
            end = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
            sys.exit(
                f"\nThe {self.name} ended by itself, exit code {self.process.returncode}. Its last words:\n\n{end}\n"
            )


@contextmanager
def kept_running(name: str, command: tuple[str, ...], environment: Mapping[str, str], folder: Path) -> Iterator[Child]:
    """Run a command in `folder` until the end of the block, whoever it was that ended it."""
    log = folder / f"{name.lower().replace(' ', '-')}.log"
    with log.open("wb") as file:
        # A session of its own: Ctrl-C reaches us alone, and we end the children one after the other.
        process = subprocess.Popen(
            command, env=environment, cwd=folder, stdout=file, stderr=file, start_new_session=True
        )
    try:
        yield Child(name, process, log)
    finally:
        process.terminate()
        try:
            process.wait(ENDS_WITHIN)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()


@contextmanager
def prefect_server(home: Path, port: int, settings: Mapping[str, str] | None = None) -> Iterator[Child]:
    """
    A Prefect server that keeps everything in `home`, once it answers at `api_url(port)`.

    Other people's runs and settings stay out of it.
    """
    environment = clean_environment() | server_settings(home, port) | dict(settings or {})
    with kept_running("Prefect server", (*PREFECT, "server", "start"), environment, home) as server:
        wait_for(f"{api_url(port)}/health", server)
        yield server


def server_settings(home: Path, port: int) -> dict[str, str]:
    return {
        "PREFECT_HOME": str(home),
        # Not `--port`: the UI would go on calling port 4200.
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_API_URL": api_url(port),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        # In memory, as is the default, the lock would stay taken for good after a restart of the server.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "DO_NOT_TRACK": "1",
    }


def clean_environment() -> dict[str, str]:
    """Without a person's own settings: they may lead to real projects."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("JELOU_", "PREFECT_"))}


def api_url(port: int) -> str:
    return f"http://127.0.0.1:{port}/api"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


def wait_for(url: str, child: Child) -> None:
    deadline = time.monotonic() + STARTS_WITHIN
    while time.monotonic() < deadline:
        child.require_alive()
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except OSError:
            time.sleep(0.2)
        else:
            return
    sys.exit(f"The {child.name} did not answer within {STARTS_WITHIN} seconds; its log is {child.log}")


class PrefectBlock(AbstractSet[str]):
    """What a receiver accepts that looks into its Prefect block at each delivery."""

    def __init__(self, api: str, name: str, login: str = "") -> None:
        self._request = urllib.request.Request(
            f"{api}/block_types/slug/secret/block_documents/name/{name}?include_secrets=true"
        )
        if login:
            self._request.add_header("Authorization", f"Basic {base64.b64encode(login.encode()).decode()}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._accepted())

    def __contains__(self, credential: object) -> bool:
        return credential in self._accepted()

    def __len__(self) -> int:
        return len(self._accepted())

    def _accepted(self) -> set[str]:
        try:
            with urllib.request.urlopen(self._request, timeout=5) as answer:
                handed_over = json.loads(json.load(answer)["data"]["value"])
        except OSError:
            return set()  # no block yet
        return {slot["value"] for slot in handed_over.values() if isinstance(slot, dict)}
