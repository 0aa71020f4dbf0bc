"""What a failed browser test leaves behind."""

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    page = item.funcargs.get("page")
    if call.when == "call" and report.failed and page:
        picture = item.funcargs["tmp_path"] / "last_page.png"
        page.screenshot(path=picture)
        report.sections.append(("The last page the browser showed", str(picture)))
    return report
