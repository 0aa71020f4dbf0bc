"""The durable store of the records, and the only writer of its tables."""

import secrets
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Self

from pydantic import SecretStr
from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from jelou_rotation.errors import LeaseLost, StoreError, Unreadable
from jelou_rotation.gateway import Integration
from jelou_rotation.records import transitions
from jelou_rotation.records.cipher import Cipher, fingerprint
from jelou_rotation.records.database import WRITES, make_engine, migrate, opening, parse_url, using
from jelou_rotation.records.parts import Parts
from jelou_rotation.records.record import (
    Lease,
    Record,
    Row,
    Step,
    Transition,
    integration_of,
    record_of,
    sealed_integration,
)
from jelou_rotation.records.rows import LEASED, chunks, create, fetch, insert_missing, locked, set_columns, write_leases
from jelou_rotation.records.schema import SEALED, history, meta, records
from jelou_rotation.records.transitions import Columns, Move, check_lease
from jelou_rotation.records.writer import Clock, Writer
from jelou_rotation.row import AuthType

_ANY = tuple(Step)
_META_KEY = "fingerprint_key"


class Store:
    """
    One record a project: `async with Store.open(url, keys) as store`. Belongs to the event loop it was opened in.

    Every transition is one durable step of one record: it is checked against the lease and the record's step, done
    and written into the history together, or not at all, and returns the record as it is then. Each of them raises
    LeaseLost, IllegalTransition, Unreadable or StoreUnavailable.
    """

    def __init__(self, engine: AsyncEngine, cipher: Cipher, fingerprint_key: bytes, now: Clock | None) -> None:
        self._engine = engine
        self._cipher = cipher
        self._fingerprint_key = fingerprint_key
        self._now = now or partial(datetime.now, UTC)
        self._writer = Writer(engine, cipher, now)

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, keys: SecretStr, *, now: Clock | None = None) -> AsyncIterator[Self]:
        """
        Ready to read and write: the schema is up to date, the key fits, writing works. Raises StoreError.

        `keys` is JELOU_STORE_KEY. `now` is the clock of the leases; without one it is the database's own where
        several machines may share it (PostgreSQL), and this machine's for a file.
        """
        cipher, parsed = Cipher(keys), parse_url(url)
        with opening(parsed):
            await migrate(parsed)
            engine = make_engine(parsed)
        try:
            with opening(parsed):
                key = await _fingerprint_key(engine, cipher)
            store = cls(engine, cipher, key, now)
            try:
                yield store
            finally:
                await store._writer.settled()
        finally:
            await engine.dispose()

    @staticmethod
    def exists(url: str) -> bool:
        """Whether there is something to open; a server is taken to have its store. Raises StoreError."""
        parsed = parse_url(url)
        return parsed.get_backend_name() != "sqlite" or Path(str(parsed.database)).exists()

    @property
    def is_shared(self) -> bool:
        """Whether several machines can have it."""
        return self._engine.dialect.name != "sqlite"

    def parts(self, run_id: str) -> Parts:
        """Where the parts of this run meet."""
        return Parts(self._writer, run_id)

    def fingerprint(self, value: SecretStr) -> str:
        """As in `Credential.fingerprint`: tells whether two values are the same."""
        return fingerprint(self._fingerprint_key, value)

    # Leases

    async def take(self, project_ids: Iterable[str], holder: str, run_id: str, seconds: float) -> dict[str, Lease]:
        """
        The leases of those that are free, or whose lease ran out, or that this run of this holder has already.

        The others are held by somebody else: `read` tells by whom and until when. A project without a record gets one.
        """
        ids = sorted(set(project_ids))
        async with self._writer.transaction() as connection:
            await create(connection, ids)
            rows = await locked(connection, ids)
            now = await self._writer.time(connection)
            until = now + timedelta(seconds=seconds)
            leases = {
                project_id: Lease(project_id, row["fence"] + 1, holder, run_id, seconds, until)
                for project_id, row in rows.items()
                if not _is_held(row, now) or (row["holder"], row["run_id"]) == (holder, run_id)
            }
            await write_leases(connection, leases.values())
        return leases

    async def renew(self, leases: Mapping[str, Lease]) -> dict[str, Lease]:
        """Lengthen those that are still held, by as much again; the ones missing in the answer are lost."""
        async with self._writer.transaction() as connection:
            now, held = await self._held(connection, leases)
            renewed = {each.project_id: replace(each, until=now + timedelta(seconds=each.seconds)) for each in held}
            await write_leases(connection, renewed.values())
        return renewed

    async def release(self, leases: Mapping[str, Lease]) -> None:
        """Give back those that are still held."""
        async with self._writer.transaction() as connection:
            _, held = await self._held(connection, leases)
            free = {"holder": None, "run_id": None, "lease_until": None}
            await set_columns(
                connection, [{"key": each.project_id, "fence": each.fence, **free} for each in held], LEASED
            )

    # Transitions

    async def stage(
        self, lease: Lease, value: SecretStr, auth_type: AuthType, *, exclusive: bool = True, keeps_overlap: bool = True
    ) -> Record:
        """
        Make a value durable before it is sent: `pending` of the answer is the one to send.

        A value that is pending already stays, and the one given here is not used. Raises Reused when any project
        has or lately had this value, unless it is not `exclusive`: several may share one that is not made here.
        """
        mark = fingerprint(self._fingerprint_key, value)
        credential = {
            "value": self._cipher.seal(lease.project_id, value.get_secret_value()),
            "auth_type": auth_type,
            "made_at": self._now(),
            "fingerprint": mark,
        }
        steps = (Step.IDLE, Step.STAGED, Step.SENT)
        move = Move(
            "stage",
            lease,
            steps,
            lambda row: transitions.staged(row, credential, lease.run_id, keeps_overlap=keeps_overlap),
            mark if exclusive else None,
        )
        return await self._writer.commit(move)

    async def mark_sent(self, lease: Lease, *, accepted_before: bool | None = None) -> Record:
        """Before the PATCH leaves, each time. `accepted_before`: whether the receiver accepts the current value."""
        steps = (Step.STAGED, Step.SENT)
        move = Move("mark_sent", lease, steps, lambda row: transitions.sent(row, accepted_before))
        return await self._writer.commit(move)

    async def mark_unsent(self, lease: Lease) -> Record:
        """The PATCH was refused for certain, so Jelou cannot have the pending value."""
        return await self._writer.commit(Move("mark_unsent", lease, (Step.SENT,), lambda _: {"step": Step.STAGED}))

    async def mark_handed_over(self, lease: Lease) -> Record:
        """The receiver was told of the record as it is now."""
        return await self._writer.commit(
            Move(
                "mark_handed_over", lease, (Step.IDLE,), lambda row: {} if row["handed_over"] else {"handed_over": True}
            )
        )

    async def promote(
        self, lease: Lease, integration: Integration, overlap_until: datetime | None, is_wanted: bool = True
    ) -> Record:
        """
        The pending value is the current one now; the former one stays as `previous` until it is retired.

        Not `is_wanted`: an earlier run made the value, and this one only finishes it before it makes another.
        """
        seen, run_id = self._sealed(lease, integration), lease.run_id if is_wanted else ""
        move = Move("promote", lease, (Step.SENT,), lambda row: transitions.promoted(row, seen, overlap_until, run_id))
        return await self._writer.commit(move)

    async def begin_rollback(self, lease: Lease) -> Record:
        """Before the current value is sent again, which takes the place of the pending one."""
        return await self._writer.commit(Move("begin_rollback", lease, (Step.SENT,), transitions.rolling_back))

    async def finish_rollback(self, lease: Lease, integration: Integration) -> Record:
        """The current value is back in place; the pending one is dropped."""
        seen = self._sealed(lease, integration)
        move = Move("finish_rollback", lease, (Step.ROLLING_BACK,), lambda _: transitions.rolled_back(seen))
        return await self._writer.commit(move)

    async def discard(self, lease: Lease) -> Record:
        """Drop a pending value that was never sent."""
        return await self._writer.commit(Move("discard", lease, (Step.STAGED,), transitions.discarded))

    async def retire(self, lease: Lease) -> Record:
        """Drop the previous value."""
        return await self._writer.commit(Move("retire", lease, (Step.IDLE,), transitions.retired))

    async def observe(self, lease: Lease, integration: Integration) -> Record:
        """Keep the integration as Jelou told it; nothing is written when it is as it was."""
        seen = self._sealed(lease, integration)

        def changes(row: Row) -> Columns:
            return {} if integration_of(row, self._cipher) == integration else {"integration": seen}

        return await self._writer.commit(Move("observe", lease, _ANY, changes))

    async def ask_signing_secret(self, lease: Lease) -> Record:
        """Before a POST leaves that lets Jelou make a signing secret, each time."""
        return await self._writer.commit(Move("ask_signing_secret", lease, _ANY, lambda _: {"signing_asked": True}))

    async def keep_signing_secret(self, lease: Lease, secret: SecretStr) -> Record:
        """The secret that Jelou answered with takes the place of the former one; the receiver must be told of it."""
        sealed, now = self._cipher.seal(lease.project_id, secret.get_secret_value()), self._now()
        move = Move("keep_signing_secret", lease, _ANY, lambda _: transitions.signing_kept(sealed, now))
        return await self._writer.commit(move)

    async def forget_signing_question(self, lease: Lease) -> Record:
        """
        The POST was refused for certain, so Jelou made no secret.

        Not where `signing_asked` was true before that POST: an earlier secret is lost, whatever becomes of this one.
        """
        move = Move("forget_signing_question", lease, _ANY, lambda _: {"signing_asked": False})
        return await self._writer.commit(move)

    async def note_failure(self, lease: Lease, park_after: int) -> Record:
        """Count one more failure in a row, and park the project when there are so many."""
        move = Move("note_failure", lease, _ANY, lambda row: transitions.failed(row, park_after))
        return await self._writer.commit(move)

    async def unpark(self, project_id: str, who: str) -> None:
        """A person has looked at it: the project takes part again. Needs no lease."""
        async with self._writer.transaction() as connection:
            rows = await locked(connection, [project_id])
            if not any(row["parked"] for row in rows.values()):
                return
            now = await self._writer.time(connection)
            await set_columns(connection, [{"key": project_id, "parked": False, "failures": 0}], ("parked", "failures"))
            line = {"project_id": project_id, "at": now, "name": "unpark", "run_id": None, "holder": who}
            await connection.execute(insert(history), [{**line, "fence": rows[project_id]["fence"]}])

    # Reading

    async def read(
        self, project_ids: Iterable[str], unreadable: dict[str, Unreadable] | None = None
    ) -> dict[str, Record]:
        """
        The records of those that have one. Raises StoreUnavailable, and Unreadable for the first that does not decrypt,
        unless there is a place to put them: one spoiled record shall not stop the others.
        """
        found: dict[str, Record] = {}
        async with self._reading() as connection:
            for chunk in chunks(sorted(set(project_ids))):
                rows = await fetch(connection, select(records).where(records.c.project_id.in_(chunk)))
                for row in rows:
                    try:
                        found[row["project_id"]] = record_of(row, self._cipher)
                    except Unreadable as error:
                        if unreadable is None:
                            raise
                        unreadable[row["project_id"]] = error
        return found

    async def open_overlaps(self) -> list[Record]:
        """The records whose previous value is not retired yet, those due first in front."""
        async with self._reading() as connection:
            query = select(records.c.project_id).where(records.c.previous_value.is_not(None))
            ids = (await connection.execute(query.order_by(records.c.overlap_until.nulls_first()))).scalars().all()
        found = await self.read(ids)
        return [found[project_id] for project_id in ids]

    async def history(self, project_id: str) -> list[Transition]:
        """What was done to this record, oldest first."""
        async with self._reading() as connection:
            query = select(history).where(history.c.project_id == project_id).order_by(history.c.id)
            rows = await fetch(connection, query)
            return [Transition(row["at"], row["name"], row["run_id"], row["holder"], row["fence"]) for row in rows]

    async def all_ids(self) -> list[str]:
        """Every project that has a record."""
        async with self._reading() as connection:
            return sorted((await connection.execute(select(records.c.project_id))).scalars())

    async def rekey(self) -> int:
        """Seal everything anew with the first of the keys; returns how many records there are."""
        async with self._writer.transaction() as connection:
            ids = (await connection.execute(select(records.c.project_id))).scalars().all()
            rows = await locked(connection, ids)
            await set_columns(connection, [self._resealed(row) for row in rows.values()], SEALED)
            key = self._cipher.seal("", self._fingerprint_key.hex())
            await connection.execute(update(meta).where(meta.c.name == _META_KEY).values(value=key))
        return len(rows)

    def _sealed(self, lease: Lease, integration: Integration) -> str:
        return sealed_integration(lease.project_id, integration, self._cipher)

    def _resealed(self, row: Row) -> Columns:
        project_id = row["project_id"]
        sealed = {name: row[name] for name in SEALED if row[name] is not None}
        anew = {
            name: self._cipher.seal(project_id, self._cipher.unseal(project_id, value))
            for name, value in sealed.items()
        }
        return {"key": project_id, **dict.fromkeys(SEALED), **anew}

    async def _held(self, connection: AsyncConnection, leases: Mapping[str, Lease]) -> tuple[datetime, list[Lease]]:
        rows = await locked(connection, leases)
        now = await self._writer.time(connection)
        return now, [lease for lease in leases.values() if _still_has(lease, rows.get(lease.project_id, {}), now)]

    @asynccontextmanager
    async def _reading(self) -> AsyncIterator[AsyncConnection]:
        with using():
            async with self._engine.connect() as connection:
                yield connection


def _is_held(row: Row, now: datetime) -> bool:
    return row["lease_until"] is not None and row["lease_until"] > now


def _still_has(lease: Lease, row: Row, now: datetime) -> bool:
    try:
        check_lease(lease, row, now)
    except LeaseLost:
        return False
    return True


async def _fingerprint_key(engine: AsyncEngine, cipher: Cipher) -> bytes:
    """Made when the store is new. Raises StoreError when this is not the key the store was sealed with."""
    async with engine.execution_options(**{WRITES: True}).begin() as connection:
        new = {"name": _META_KEY, "value": cipher.seal("", secrets.token_hex(32))}
        # Also finds out a store that can only be read, here and not after a PATCH.
        await connection.execute(insert_missing(connection, meta), [new])
        sealed = (await connection.execute(select(meta.c.value).where(meta.c.name == _META_KEY))).scalar_one()
    try:
        return bytes.fromhex(cipher.unseal("", sealed))
    except Unreadable:
        raise StoreError("JELOU_STORE_KEY: the record store was sealed with another key") from None
