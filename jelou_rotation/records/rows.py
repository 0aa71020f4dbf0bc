"""The statements that read and write rows, inside a transaction of the writer."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from sqlalchemy import Insert, Select, Table, bindparam, delete, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from jelou_rotation.records.record import Lease, Step
from jelou_rotation.records.schema import fingerprints, history, records
from jelou_rotation.records.transitions import Batch, Columns, forgotten

# Far below what a statement may carry in either database, and short enough for the event loop between two.
AT_ONCE = 500
LEASED = ("fence", "holder", "run_id", "lease_until")
_MOVED = tuple(column.name for column in records.c if column.name not in {"project_id", *LEASED})


async def fetch(connection: AsyncConnection, query: Select[Any]) -> list[Columns]:
    return [{**row} for row in (await connection.execute(query)).mappings()]


async def locked(connection: AsyncConnection, project_ids: Iterable[str]) -> dict[str, Columns]:
    """The rows of these projects, which nobody else can change before this transaction ends."""
    rows: dict[str, Columns] = {}
    # In the order of their names, so that two transactions never wait for each other.
    for chunk in chunks(sorted(project_ids)):
        query = select(records).where(records.c.project_id.in_(chunk)).order_by(records.c.project_id)
        rows |= {row["project_id"]: row for row in await fetch(connection, query.with_for_update())}
    return rows


async def create(connection: AsyncConnection, project_ids: Iterable[str]) -> None:
    """A record for each project that has none."""
    first = {"step": Step.IDLE, "failures": 0, "parked": False, "made": 0, "fence": 0}
    first |= {"keeps_overlap": True, "handed_over": True, "signing_asked": False}
    for chunk in chunks(project_ids):
        new = insert_missing(connection, records)
        await connection.execute(new, [{"project_id": project_id, **first} for project_id in chunk])


def insert_missing(connection: AsyncConnection, table: Table) -> Insert:
    """An insert that leaves alone what is there; each database has its own, spelled the same."""
    if connection.dialect.name == "sqlite":
        return sqlite.insert(table).on_conflict_do_nothing()
    return postgresql.insert(table).on_conflict_do_nothing()


async def set_columns(connection: AsyncConnection, rows: Sequence[Columns], names: Iterable[str]) -> None:
    """Write these columns of each row; `key` is its project."""
    if rows:
        values: dict[Any, Any] = {records.c[name]: bindparam(name) for name in names}
        await connection.execute(update(records).where(records.c.project_id == bindparam("key")).values(values), rows)


async def write_leases(connection: AsyncConnection, leases: Iterable[Lease]) -> None:
    rows = [
        {
            "key": lease.project_id,
            "fence": lease.fence,
            "holder": lease.holder,
            "run_id": lease.run_id,
            "lease_until": lease.until,
        }
        for lease in leases
    ]
    await set_columns(connection, rows, LEASED)


def chunks(project_ids: Iterable[str]) -> Iterator[Sequence[str]]:
    items = list(project_ids)
    return (items[start : start + AT_ONCE] for start in range(0, len(items), AT_ONCE))


async def owners(connection: AsyncConnection, marks: Sequence[str]) -> dict[str, str]:
    """The projects that these fingerprints belong to already."""
    if not marks:
        return {}
    query = select(fingerprints.c.fingerprint, fingerprints.c.project_id)
    rows = await connection.execute(query.where(fingerprints.c.fingerprint.in_(marks)))
    return {row.fingerprint: row.project_id for row in rows}


async def write(connection: AsyncConnection, batch: Batch) -> None:
    """What the moves of a batch have made of its rows."""
    changed = [{"key": key, **{name: batch.rows[key][name] for name in _MOVED}} for key in sorted(batch.changed)]
    await set_columns(connection, changed, _MOVED)
    if batch.history:
        await connection.execute(insert(history), batch.history)
    if batch.claims:
        await _claim(connection, [batch.claims[mark] for mark in sorted(batch.claims)])


async def _claim(connection: AsyncConnection, claims: Sequence[Columns]) -> None:
    """Remember these fingerprints as the youngest of their projects, and forget the oldest."""
    known = fingerprints.c
    # One that somebody else has stored since we looked is an IntegrityError, and must not be made room for.
    await connection.execute(insert(fingerprints), claims)
    await connection.execute(
        delete(fingerprints).where(known.project_id == bindparam("of"), known.number <= bindparam("up_to")),
        [forgotten(claim) for claim in claims],
    )
