"""The Prefect UI as a person uses it: the form, the run, its report, the approval; in a real browser."""

import re
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import BrowserContext, Locator, Page, expect, sync_playwright

from jelou_rotation.simulator import Simulator, running
from tests.e2e.live_prefect import PATIENCE_SECONDS, Prefect, live_prefect

CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--no-sandbox",  # root, as in a container, has none
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--no-first-run",
    # Prefect's UI would ask Amplitude, wherever it runs.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
PROJECTS = ("acme-mx", "banco-andino", "condor")
CREDENTIALS = {"NEW_1": "canary-1", "NEW_2": "canary-2", "NEW_3": "canary-3"}
MANIFEST = "projectId,authType,authorization\n" + "".join(
    f"{project},bearer,env:{name}\n" for project, name in zip(PROJECTS, CREDENTIALS, strict=True)
)

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="needs a browser (Debian: apt install chromium)")


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    simulator = Simulator()
    with running(simulator):
        for project in PROJECTS:
            simulator.add_project(project)
        yield simulator


@pytest.fixture(scope="module")
def prefect(database: str, simulator: Simulator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prefect]:
    folder = tmp_path_factory.mktemp("live")
    with live_prefect(folder, database, simulator, CREDENTIALS, deployment="rotate-manual") as prefect:
        yield prefect


@pytest.fixture(scope="module")
def window(prefect: Prefect) -> Iterator[BrowserContext]:
    """
    One for all tests: it keeps the UI's megabytes of script.

    After the server, whose database is made in an event loop: beside Playwright's there can be no other.
    """
    expect.set_options(timeout=20_000)
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS) as browser:
        yield browser.new_context(viewport={"width": 1280, "height": 2400})


@pytest.fixture
def page(window: BrowserContext) -> Iterator[Page]:
    with window.new_page() as page:
        yield page


@pytest.fixture
def form(page: Page, prefect: Prefect) -> Locator:
    """The form of `rotate-manual`."""
    page.goto(f"{prefect.ui}v2/deployments/deployment/{prefect.deployment()['id']}/run")
    return with_fields(page)


def with_fields(page: Page) -> Locator:
    """The form on this page, once it has its fields."""
    form = page.locator("form", has_text="Parameters")
    expect(form.get_by_label("manifest", exact=True)).to_be_visible()
    return form


def choose(form: Locator, field: str, word: str) -> None:
    form.get_by_role("button", name=f"Select {field}").click()
    form.page.get_by_role("option", name=word, exact=True).click()
    # While it closes it takes the focus back, which would close the next one.
    expect(form.page.get_by_role("listbox")).to_be_hidden()


def start(form: Locator, manifest: str) -> Locator:
    """Submit the form and open the run."""
    form.get_by_label("manifest", exact=True).fill(manifest)
    form.get_by_role("button", name="Submit").click()
    form.page.get_by_role("button", name="View run").click()
    form.page.wait_for_url("**/runs/flow-run/**")
    return form.page.get_by_role("main")


def expect_state(run: Locator, state: str) -> None:
    expect(run.get_by_text(state, exact=True).first).to_be_visible(timeout=PATIENCE_SECONDS * 1000)


def state_message(run: Locator) -> Locator:
    run.get_by_role("tab", name="Details").click()
    return run.get_by_role("term").filter(has_text="State Message").locator("+ dd")


def open_report(run: Locator) -> Locator:
    run.get_by_role("tab", name="Artifacts").click()
    run.get_by_role("link", name="jelou-rotation-report").click()
    # First comes the list of all reports under this key.
    run.get_by_role("link", name=re.compile(r"^[0-9a-f]{8}$")).first.click()
    return run.get_by_role("tabpanel", name="Artifact")


def test_a_person_finds_the_form_and_it_explains_every_field(page: Page, prefect: Prefect):
    page.goto(prefect.ui)
    page.get_by_role("link", name="Deployments").click()
    page.get_by_role("link", name="rotate-manual").click()
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Custom run").click()
    form = with_fields(page)

    for field in prefect.deployment()["parameter_openapi_schema"]["properties"]:
        label = form.locator("label", has_text=re.compile(rf"^{field}( \(Optional\))?$"))
        expect(label.locator("+ p")).to_have_text(re.compile(r"\w+ \w+.*\.$"))
    form.get_by_role("button", name="Select mode").click()
    expect(page.get_by_role("option")).to_have_text(["plan", "rotate"])
    expect(page.get_by_role("option", selected=True)).to_have_text("plan")


def test_a_pasted_manifest_is_planned_and_the_report_is_a_page(form: Locator, simulator: Simulator):
    run = start(form, MANIFEST)
    expect_state(run, "Completed")

    report = open_report(run)

    expect(report.get_by_role("heading", level=1)).to_have_text("Plan: pasted text")
    expect(report.get_by_role("paragraph").filter(has_text="3 projects: 3 would change.")).to_be_visible()
    bar = report.get_by_role("img", name="3 planned")
    assert bar.evaluate("image => image.complete && image.naturalWidth") > 0
    next_step = report.get_by_role("listitem").filter(has_text="approved_plan")
    expect(next_step).to_have_text(re.compile(r"run mode rotate with approved_plan set to [0-9a-f]{12}\.$"))
    assert {project.authorization for project in simulator.projects.values()} == {"old"}


def test_a_wrong_manifest_is_refused_in_words(form: Locator):
    run = start(form, "projectId,webhookUrl\nacme-mx,http://panel.acme.example/events\n")
    expect_state(run, "Failed")

    expect(state_message(run)).to_contain_text("Refused, nothing was sent.")
    expect(state_message(run)).to_contain_text("line 2, webhookUrl: expected an https:// URL")


def test_a_rotation_waits_until_a_person_types_how_many_projects_may_change(form: Locator, simulator: Simulator):
    choose(form, "mode", "rotate")
    choose(form, "approval", "pause")
    run = start(form, MANIFEST)
    expect_state(run, "Paused")
    assert {project.authorization for project in simulator.projects.values()} == {"old"}

    run.get_by_role("button", name="Open menu").click()
    run.page.get_by_role("menuitem", name="Resume").click()
    dialog = run.page.get_by_role("dialog")
    expect(dialog).to_contain_text("3 projects")
    for project in PROJECTS:
        expect(dialog).to_contain_text(project)
    dialog.get_by_role("spinbutton").fill("3")
    dialog.get_by_role("button", name="Resume").click()

    expect_state(run, "Completed")
    expect(state_message(run)).to_have_text("All 3 projects are as wanted: 3 rotated.")
    assert [simulator.projects[project].authorization for project in PROJECTS] == list(CREDENTIALS.values())
