"""The order of the tests, a Prefect server's database, and what a failed browser test leaves behind."""

import asyncio

import pytest

from tests.conftest import PASSWORD, run_sql


@pytest.fixture(scope="module")
def database(postgres):
    """
    The address of an empty one for a Prefect server.

    Not on SQLite, where one server in 45 stood still for a minute: a cursor whose statement was refused stays open, and
    when it is collected as garbage the event loop waits for the next statement on its connection, which waits for the
    commit of another, which only the event loop can send (aiosqlite 0.22 under SQLAlchemy 2.0.58).
    """
    asyncio.run(run_sql(postgres, "DROP DATABASE IF EXISTS prefect WITH (FORCE)"))
    asyncio.run(run_sql(postgres, "CREATE DATABASE prefect"))
    return f"postgresql+asyncpg://postgres:{PASSWORD}@127.0.0.1:{postgres}/prefect"


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
