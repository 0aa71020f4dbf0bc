"""
Takes the README's pictures of the Prefect UI, as `make ui` shows it: `python deployments/pictures.py`.

By hand, when the form, a run or the report has come to look different. Needs chromium and playwright.
"""

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from local_server import api_url, free_port
from playwright.sync_api import Locator, Page, expect, sync_playwright

REPOSITORY = Path(__file__).parents[1]
DOCS = REPOSITORY / "docs"
WIDTH = 1280
MARGIN = 12
PATIENCE_SECONDS = 120
ANSWER_SECONDS = 0.4
FIRST = ("bolivar", "condor", "galapagos")
PASTED = """\
defaults:
  authType: bearer
projects:
  acme:
    authorization: env:ACME_TOKEN
  galapagos:
    authorization: generate
    publishTo: block:secret/galapagos"""


class Prefect:
    """The server of `make ui`, as its API sees it."""

    def __init__(self, port: int, login: str) -> None:
        self.ui = f"http://127.0.0.1:{port}/v2"
        self._api = api_url(port)
        self._headers = {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"}

    def deployment(self) -> str:
        """The id of `rotate-manual`."""
        return str(self.ask("/deployments/name/rotate-credentials/rotate-manual")["id"])

    def start(self, **parameters: Any) -> str:
        """The id of a new run of `rotate-manual`, on the manifest of `make ui`."""
        address = f"/deployments/{self.deployment()}/create_flow_run"
        return str(self.ask(address, {"parameters": parameters})["id"])

    def report(self, run: str) -> str:
        """The id of the run's report."""
        wanted = {"flow_run_id": {"any_": [run]}, "key": {"any_": ["jelou-rotation-report"]}}
        return str(self.ask("/artifacts/filter", {"artifacts": wanted})[0]["id"])

    def ask(self, path: str, body: Any = None) -> Any:
        return ask(self._api + path, body, self._headers)


def main() -> None:
    """Three pictures in the folder docs: form.png, run.png, report.png."""
    DOCS.mkdir(exist_ok=True)
    with make_ui() as (prefect, login, jelou), light_window() as page:
        # Answers take a moment, as over the internet, so that the time line of a run has something to show.
        ask(f"{jelou}/simulator/faults", {"kind": "delay", "delaySeconds": ANSWER_SECONDS})
        log_in(page, prefect, login)
        take_form(page, prefect)
        take_run(page, prefect)
        take_report(page, prefect)


@contextmanager
def make_ui() -> Iterator[tuple[Prefect, str, str]]:
    """The server, its password and the address of the simulated Jelou."""
    with tempfile.TemporaryDirectory() as home:
        port, simulator_port = free_port(), free_port()
        ports = ("--port", str(port), "--simulator-port", str(simulator_port))
        command = (sys.executable, "-u", str(REPOSITORY / "deployments" / "ui.py"), "--home", home, *ports)
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                if not any(line == "Ready.\n" for line in process.stdout or ()):
                    sys.exit("pictures: make ui does not start")
                login = Path(home, "login").read_text()
                yield Prefect(port, login), login, f"http://127.0.0.1:{simulator_port}"
            finally:
                process.terminate()
                # Read what is left, or it could wait for us to.
                process.communicate()


@contextmanager
def light_window() -> Iterator[Page]:
    # Prefect's UI would call its makers' analytics from the browser.
    loopback = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    as_root = ("--no-sandbox",) if os.geteuid() == 0 else ()
    flags = ("--disable-gpu", "--disable-background-networking", loopback, *as_root)
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=shutil.which("chromium"), args=flags) as browser,
    ):
        page = browser.new_page(viewport={"width": WIDTH, "height": 2400}, color_scheme="light")
        page.set_default_timeout(PATIENCE_SECONDS * 1000)
        expect.set_options(timeout=PATIENCE_SECONDS * 1000)
        yield page


def log_in(page: Page, prefect: Prefect, login: str) -> None:
    page.goto(prefect.ui)
    page.get_by_role("textbox").fill(login)
    page.get_by_role("button").first.click()
    page.get_by_role("link", name="Deployments").wait_for()


def take_form(page: Page, prefect: Prefect) -> None:
    page.goto(f"{prefect.ui}/deployments/deployment/{prefect.deployment()}/run")
    page.get_by_label("manifest", exact=True).fill(PASTED)
    choose(page, "mode", "rotate")
    choose(page, "approval", "pause")
    take(page, "form", page.get_by_role("button", name="Select approval"))


def choose(page: Page, field: str, word: str) -> None:
    page.get_by_role("button", name=f"Select {field}").click()
    page.get_by_role("option", name=word, exact=True).click()
    # While it closes it takes the focus back, which would close the next one.
    expect(page.get_by_role("listbox")).to_be_hidden()


def take_run(page: Page, prefect: Prefect) -> None:
    run = prefect.start(mode="rotate", only=FIRST)
    wait_for_end(page, prefect, run)
    take(page, "run", page.get_by_role("link", name="jelou-rotation-report"))


def take_report(page: Page, prefect: Prefect) -> None:
    run = prefect.start(mode="rotate")
    wait_for_end(page, prefect, run)
    page.goto(f"{prefect.ui}/artifacts/artifact/{prefect.report(run)}")
    take(page, "report", page.get_by_role("table").nth(1))


def wait_for_end(page: Page, prefect: Prefect, run: str) -> None:
    """Leaves the page at the run's artifacts."""
    page.goto(f"{prefect.ui}/runs/flow-run/{run}")
    page.get_by_role("main").get_by_text("Completed").or_(page.get_by_text("Failed")).first.wait_for()
    page.reload()
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_role("link", name="jelou-rotation-report").wait_for()


def take(page: Page, name: str, last: Locator) -> None:
    """The page down to `last`."""
    page.wait_for_timeout(2000)
    box = last.bounding_box()
    height = box["y"] + box["height"] + MARGIN if box else WIDTH
    page.mouse.move(0, 0)
    page.screenshot(
        path=DOCS / f"{name}.png", clip={"x": 0, "y": 0, "width": WIDTH, "height": height}, animations="disabled"
    )
    print(f"docs/{name}.png: {(DOCS / f'{name}.png').stat().st_size:,} bytes")


def ask(url: str, body: Any = None, headers: dict[str, str] | None = None) -> Any:
    """POST when there is a body; again while a server on SQLite is busy with another writer."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json", **(headers or {})})
    for _time in range(20):
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code != 503:
                raise
            time.sleep(0.5)
    sys.exit(f"pictures: {url} is busy")


if __name__ == "__main__":
    main()
