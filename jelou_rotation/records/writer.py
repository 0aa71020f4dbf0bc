"""How changes of records become durable: transactions, and many transitions in one of them."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from jelou_rotation.records.cipher import Cipher
from jelou_rotation.records.database import WRITES, using
from jelou_rotation.records.record import Record
from jelou_rotation.records.rows import AT_ONCE, locked, owners, write
from jelou_rotation.records.transitions import Batch, Move

Clock = Callable[[], datetime]


class Writer:
    """
    The one writer of a store.

    Transitions that come together share one commit, because a commit is a wait for the disk: 30,000 of them alone
    take minutes. None hurts another, and a caller hears of its own only when the commit is durable.
    """

    def __init__(self, engine: AsyncEngine, cipher: Cipher, now: Clock | None) -> None:
        self._engine = engine.execution_options(**{WRITES: True})
        self._cipher = cipher
        self._now = now
        # SQLite has one writer: waiting for it here is fair, waiting for it there is polling.
        self._turn = asyncio.Lock()
        self._waiting: list[tuple[Move, asyncio.Future[Record]]] = []
        self._committing: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """All of what is done inside, or nothing of it. Raises StoreUnavailable."""
        with using():
            async with self._turn, self._engine.begin() as connection:
                yield connection

    async def commit(self, move: Move) -> Record:
        """The record after this transition, which is durable then. Raises RecordError."""
        future: asyncio.Future[Record] = asyncio.get_running_loop().create_future()
        self._waiting.append((move, future))
        if self._committing is None or self._committing.done():
            self._committing = asyncio.create_task(self._commit_all())
        return await future

    async def settled(self) -> None:
        """Wait for what is on its way, also when nobody waits for it any more."""
        if self._committing:
            await self._committing

    async def time(self, connection: AsyncConnection) -> datetime:
        """
        The clock of the leases: several machines may share a server, whose clock is then the only one they share;
        a file has one machine.
        """
        if self._now:
            return self._now()
        if connection.dialect.name == "sqlite":
            return datetime.now(UTC)
        told: datetime = (await connection.execute(select(func.clock_timestamp()))).scalar_one()
        return told

    async def _commit_all(self) -> None:
        while self._waiting:
            # Those that the last commit has just woken may have their next transition ready.
            await asyncio.sleep(0)
            batch, self._waiting = self._waiting[:AT_ONCE], self._waiting[AT_ONCE:]
            try:
                outcomes = await self._outcomes([move for move, _ in batch])
                for (_, future), outcome in zip(batch, outcomes, strict=True):
                    _settle(future, outcome)
            finally:
                # Only those without an outcome: the loop is closing.
                for _, future in batch:
                    future.cancel()

    async def _outcomes(self, moves: Sequence[Move]) -> Sequence[Record | Exception]:
        try:
            with using():
                try:
                    return await self._commit_batch(moves)
                except IntegrityError:
                    # Another process stored one of these values between our look and our write: now we see it.
                    return await self._commit_batch(moves)
        except Exception as error:  # noqa: BLE001 - whatever broke, those who wait must hear of it
            return [error] * len(moves)

    async def _commit_batch(self, moves: Sequence[Move]) -> list[Record | Exception]:
        async with self._turn, self._engine.begin() as connection:
            rows = await locked(connection, {move.lease.project_id for move in moves})
            known = await owners(connection, [move.fingerprint for move in moves if move.fingerprint])
            batch = Batch(rows, known, await self.time(connection), self._cipher)
            outcomes: list[Record | Exception] = [batch.apply(move) for move in moves]
            await write(connection, batch)
        return outcomes


def _settle(future: asyncio.Future[Record], outcome: Record | Exception) -> None:
    if future.done():
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
