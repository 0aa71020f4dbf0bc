"""Where a run with shards and its parts meet: signs of life, numbers, the word to stop, and what became of the rows."""

import json
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, and_, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from jelou_rotation.records.rows import fetch
from jelou_rotation.records.schema import parts
from jelou_rotation.records.signs import Progress, Sign, Word
from jelou_rotation.records.transitions import Columns
from jelou_rotation.records.writer import Writer

_THE_RUN = 0
# A run that died leaves its rows behind.
_KEPT = timedelta(days=1)


class Parts:
    """The parts of one run, numbered from 1. All times are those of the database's clock."""

    def __init__(self, writer: Writer, run_id: str) -> None:
        self._writer = writer
        self._run_id = run_id

    # The run

    async def open(self, count: int) -> None:
        """A place for each part, of which the first try is expected."""
        async with self._writer.transaction() as connection:
            now = await self._writer.time(connection)
            dead = select(parts.c.run_id).where(parts.c.part == _THE_RUN, parts.c.beat_at < now - _KEPT)
            await connection.execute(delete(parts).where((parts.c.run_id == self._run_id) | parts.c.run_id.in_(dead)))
            first = {"run_id": self._run_id, "attempt": 1, "done": 0, "failures": 0}
            numbers = range(count + 1)
            await connection.execute(
                insert(parts),
                [{**first, "part": number, "beat_at": None if number else now} for number in numbers],
            )

    async def expect(self, part: int, attempt: int) -> None:
        """Only this try of the part counts from now on; an earlier one that lives on hears so."""
        nothing = {"beat_at": None, "holder": None, "done": 0, "failures": 0, "requests": None, "report": None}
        await self._update(self._is(part), {"attempt": attempt, **nothing})

    async def look(self) -> dict[int, Progress]:
        """How far each part is; also a sign of life of the run itself."""
        shown = [column for column in parts.c if column.name != "report"]
        query = select(*shown, parts.c.report.is_not(None).label("has_ended"))
        async with self._writer.transaction() as connection:
            now = await self._writer.time(connection)
            await connection.execute(update(parts).where(self._is(_THE_RUN)).values(beat_at=now))
            rows = await fetch(connection, query.where(parts.c.run_id == self._run_id, parts.c.part != _THE_RUN))
        return {row["part"]: _progress(row, now) for row in rows}

    async def report(self, part: int) -> str:
        """What the part has handed in."""
        async with self._writer.transaction() as connection:
            query = select(parts.c.report).where(self._is(part))
            text: str = (await connection.execute(query)).scalar_one()
        return text

    async def stop(self, reason: str) -> None:
        """Every part hears with its next sign of life that it shall begin no further row."""
        await self._update(self._is(_THE_RUN), {"stop": reason})

    async def close(self) -> None:
        """The run is over: its parts are no longer expected."""
        async with self._writer.transaction() as connection:
            await connection.execute(delete(parts).where(parts.c.run_id == self._run_id))

    # A part

    async def beat(self, part: int, attempt: int, sign: Sign) -> Word | None:
        """Give a sign of life. None when the run does not expect this try of the part, or not any more."""
        async with self._writer.transaction() as connection:
            now = await self._writer.time(connection)
            if not await _changed(connection, self._is(part, attempt), _columns(sign) | {"beat_at": now}):
                return None
            (run,) = await fetch(connection, select(parts).where(self._is(_THE_RUN)))
            left = select(func.count()).where(
                parts.c.run_id == self._run_id, parts.c.part != _THE_RUN, parts.c.report.is_(None)
            )
            parts_left = (await connection.execute(left)).scalar_one()
        return Word(run["stop"], (now - run["beat_at"]).total_seconds(), parts_left)

    async def hand_in(self, part: int, attempt: int, sign: Sign, report: str) -> None:
        """What became of the part's rows. Nothing happens when another try of it is expected by now."""
        await self._update(self._is(part, attempt), _columns(sign) | {"report": report})

    def _is(self, part: int, attempt: int | None = None) -> ColumnElement[bool]:
        place = and_(parts.c.run_id == self._run_id, parts.c.part == part)
        return place if attempt is None else and_(place, parts.c.attempt == attempt)

    async def _update(self, where: ColumnElement[bool], values: Columns) -> None:
        async with self._writer.transaction() as connection:
            await _changed(connection, where, values)


async def _changed(connection: AsyncConnection, where: ColumnElement[bool], values: Columns) -> bool:
    result: Any = await connection.execute(update(parts).where(where).values(values))
    return bool(result.rowcount)


def _progress(row: Columns, now: datetime) -> Progress:
    if not row["beat_at"]:
        return Progress(None, None, row["has_ended"])
    sign = Sign(row["holder"], row["done"], row["failures"], json.loads(row["requests"]))
    return Progress(sign, (now - row["beat_at"]).total_seconds(), row["has_ended"])


def _columns(sign: Sign) -> Columns:
    return {
        "holder": sign.holder,
        "done": sign.done,
        "failures": sign.failures,
        "requests": json.dumps(dict(sign.requests)),
    }
