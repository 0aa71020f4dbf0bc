"""The order of the tests, and what a failed browser test leaves behind."""

import pytest


def pytest_collection_modifyitems(items):
    """These take longest and wait much: they begin first, and whatever only computes fills the gaps."""
    items.sort(key=lambda item: item.path.parent.name != "e2e")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    page = item.funcargs.get("page")
    if call.when == "call" and report.failed and page:
        picture = item.funcargs["tmp_path"] / "last_page.png"
        page.screenshot(path=picture)
        report.sections.append(("The last page the browser showed", str(picture)))
    return report
