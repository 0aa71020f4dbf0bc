"""The database behind the store: SQLite or PostgreSQL, its schema, and its troubles in words."""

import asyncio
import os
import re
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import asyncpg  # type: ignore[import-untyped]  # asyncpg ships no types
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import URL, Connection, NullPool, event, make_url, text
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from jelou_rotation.errors import JelouRotationError, StoreError, StoreUnavailable

WRITES = "jelou_writes"
"""The execution option of connections that will write."""

_EXPECTED = "JELOU_STORE_URL: expected sqlite:///PATH or postgresql://USER:PASSWORD@HOST/DATABASE"
_DRIVERS = {
    "sqlite": "sqlite+aiosqlite",
    "sqlite+aiosqlite": "sqlite+aiosqlite",
    "postgres": "postgresql+asyncpg",
    "postgresql": "postgresql+asyncpg",
    "postgresql+asyncpg": "postgresql+asyncpg",
}
_WAIT_SECONDS = 30
_CONNECT_SECONDS = 10
_WAL_TRIES = 200
_WAL_PAUSE_SECONDS = 0.02
# Any number that nothing else in the same database locks.
_MIGRATION_LOCK = 0x6A656C6F75

# alembic keeps the migration it runs in globals of the process.
_one_migration = threading.Lock()

_CAUSES = {
    "SQLITE_BUSY": "another process is writing and did not finish in time",
    "SQLITE_CANTOPEN": "the file or its folder cannot be opened",
    "SQLITE_CORRUPT": "the file is damaged",
    "SQLITE_FULL": "the disk is full",
    "SQLITE_NOTADB": "the file is no SQLite database",
    "SQLITE_READONLY": "it cannot be written: check the rights of the file and of its folder",
    "25006": "the server accepts no writes",
    "28000": "the server refuses this user",
    "28P01": "the server refuses the user or the password",
    "3D000": "the server has no such database",
    "42501": "this user lacks rights in the database",
    "53100": "the server's disk is full",
    "53300": "the server has no connection left",
}


def parse_url(url: str) -> URL:
    """Raises StoreError, never with the URL: it may hold a password."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise StoreError(_EXPECTED) from None
    if parsed.drivername not in _DRIVERS:
        raise StoreError(_EXPECTED)
    parsed = parsed.set(drivername=_DRIVERS[parsed.drivername])
    if not _is_sqlite(parsed):
        if re.search("[@#/]", f"{parsed.host or ''}{parsed.database or ''}"):
            # A password with such a sign in it is taken for the host by halves, and that would be shown.
            raise StoreError(f"{_EXPECTED}, with %40 for @, %2F for / and %23 for # in the password")
        # What libpq calls sslmode, asyncpg calls ssl.
        query = {("ssl" if key == "sslmode" else key): value for key, value in parsed.query.items()}
        return parsed.set(query=query)
    if parsed.query or parsed.database in {None, "", ":memory:"}:
        raise StoreError(f"{_EXPECTED}; a store in memory would forget every credential")
    return parsed


def make_engine(url: URL, **options: Any) -> AsyncEngine:
    """Connects to nothing yet; creates an SQLite file that only its owner may read."""
    if not _is_sqlite(url):
        # Every commit locks its rows and then wants to see them as they are, whatever the server's default.
        waits = {"timeout": _CONNECT_SECONDS, "command_timeout": 2 * _WAIT_SECONDS}
        return create_async_engine(
            url, hide_parameters=True, isolation_level="READ COMMITTED", connect_args=waits, **options
        )
    os.close(os.open(str(url.database), os.O_RDONLY | os.O_CREAT, 0o600))
    engine = create_async_engine(url, hide_parameters=True, connect_args={"timeout": _WAIT_SECONDS}, **options)
    event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return engine


async def migrate(url: URL) -> None:
    """Bring the schema up to date, one process at a time."""
    # In a thread with a loop of its own: alembic must not be entered twice at once, and a lock would block this loop.
    await asyncio.to_thread(lambda: asyncio.run(_migrate_alone(url)))


async def _migrate_alone(url: URL) -> None:
    with _one_migration:
        engine = make_engine(url, poolclass=NullPool)
        try:
            async with engine.execution_options(**{WRITES: True}).begin() as connection:
                if not _is_sqlite(url):
                    await connection.execute(text("SELECT pg_advisory_xact_lock(:n)"), {"n": _MIGRATION_LOCK})
                await connection.run_sync(_upgrade)
        finally:
            await engine.dispose()


def _upgrade(connection: Connection) -> None:
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", "jelou_rotation:migrations")
    command.upgrade(config, "head")


@contextmanager
def opening(url: URL) -> Iterator[None]:
    """Whatever goes wrong inside is a StoreError that says which store, and nothing of what the driver said."""
    where = url.database if _is_sqlite(url) else f"{url.database} on {url.host or url.query.get('host') or 'this host'}"
    try:
        yield
    except JelouRotationError:
        raise
    except CommandError:
        raise StoreError(f"the record store {where} was made by a newer version of jelou-rotation") from None
    except Exception as error:  # noqa: BLE001 - whatever broke, its text may hold the password
        raise StoreError(f"the record store {where} cannot be used: {_cause(error)}") from None


@contextmanager
def using() -> Iterator[None]:
    """As `opening`, for a store that was open: what was asked may or may not have become durable."""
    try:
        yield
    except (SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        raise StoreUnavailable(
            f"the record store failed: {_cause(error)}. What was asked may or may not be stored: read the record again"
        ) from None


def _cause(error: BaseException) -> str:
    """The class and the codes decide; the text of a driver may hold a password or a statement's values."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, FileNotFoundError):
        return "there is no such folder"
    if isinstance(error, OSError):
        return f"{error.strerror or 'no connection'}"
    original = getattr(error, "orig", None) or error
    name = getattr(original, "sqlite_errorname", None)
    code = getattr(original, "sqlstate", None)
    # SQLITE_READONLY_DIRECTORY and the like are kinds of the first two words.
    family = "_".join(name.split("_")[:2]) if name else code
    return _CAUSES.get(family or "", f"{type(error).__name__} {name or code or ''}".strip())


def _is_sqlite(url: URL) -> bool:
    return url.get_backend_name() == "sqlite"


def _prepare_sqlite(connection: Any, _record: object) -> None:
    # As SQLAlchemy's documentation says: only we begin transactions, the driver none by itself.
    connection.isolation_level = None
    cursor = connection.cursor()
    _enter_wal(cursor)
    # A lost commit is a lost credential; NORMAL would lose the last ones with the power.
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.close()


def _enter_wal(cursor: Any) -> None:
    """Several processes may open a fresh file at once, and for this one step SQLite does not wait for the others."""
    for is_last in (*[False] * _WAL_TRIES, True):
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if is_last or error.sqlite_errorname != "SQLITE_BUSY":
                raise
            time.sleep(_WAL_PAUSE_SECONDS)


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that begins with reading could not wait for its turn to write: it would fail at once.
    writes = connection.get_execution_options().get(WRITES)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
