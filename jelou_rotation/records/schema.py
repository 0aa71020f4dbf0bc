"""The tables; `jelou_rotation/migrations` makes them. Named for sharing a database with others, such as Prefect's."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
)
from sqlalchemy.types import TypeEngine

SLOTS = ("current", "pending", "previous")
PARTS = ("value", "auth_type", "made_at", "fingerprint")
SEALED = (*(f"{slot}_value" for slot in SLOTS), "integration", "signing_value")


class Moment(TypeDecorator[datetime]):
    """A moment in UTC: SQLite keeps no time zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002 - theirs
        return value.astimezone(UTC) if value else None

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002 - theirs
        return value.replace(tzinfo=UTC) if value and not value.tzinfo else value


def _credential(slot: str) -> list[Column[Any]]:
    types: tuple[TypeEngine[Any], ...] = (Text(), String(20), Moment(), String(64))
    return [Column(f"{slot}_{part}", kind) for part, kind in zip(PARTS, types, strict=True)]


metadata = MetaData()

records = Table(
    "jelou_records",
    metadata,
    Column("project_id", String(200), primary_key=True),
    Column("step", String(20), nullable=False),
    *_credential("current"),
    *_credential("pending"),
    *_credential("previous"),
    Column("overlap_until", Moment()),
    Column("accepted_before", Boolean()),
    Column("keeps_overlap", Boolean(), nullable=False),
    Column("handed_over", Boolean(), nullable=False),
    Column("made_in", Text()),
    # Sealed as a credential is: the query of a webhook's address may hold a token.
    Column("integration", Text()),
    Column("failures", Integer(), nullable=False),
    Column("parked", Boolean(), nullable=False),
    Column("signing_value", Text()),
    Column("signing_made_at", Moment()),
    Column("signing_asked", Boolean(), nullable=False),
    # Counts the credentials of this project; only the last ones are remembered by their fingerprints.
    Column("made", Integer(), nullable=False),
    Column("fence", BigInteger(), nullable=False),
    Column("holder", Text()),
    Column("run_id", Text()),
    Column("lease_until", Moment()),
)

fingerprints = Table(
    "jelou_fingerprints",
    metadata,
    Column("fingerprint", String(64), primary_key=True),
    Column("project_id", String(200), nullable=False),
    Column("number", Integer(), nullable=False),
    Index("jelou_fingerprints_project", "project_id", "number"),
)

history = Table(
    "jelou_history",
    metadata,
    # SQLite numbers rows by itself only where the key is an INTEGER.
    Column("id", BigInteger().with_variant(Integer(), "sqlite"), primary_key=True),
    Column("project_id", String(200), nullable=False),
    Column("at", Moment(), nullable=False),
    Column("name", String(40), nullable=False),
    Column("run_id", Text()),
    Column("holder", Text(), nullable=False),
    Column("fence", BigInteger(), nullable=False),
    Index("jelou_history_project", "project_id", "id"),
)

# Part 0 is the run itself.
parts = Table(
    "jelou_parts",
    metadata,
    Column("run_id", String(40), primary_key=True),
    Column("part", Integer(), primary_key=True),
    Column("attempt", Integer(), nullable=False),
    Column("beat_at", Moment()),
    Column("holder", Text()),
    Column("done", Integer(), nullable=False),
    Column("failures", Integer(), nullable=False),
    Column("requests", Text()),
    Column("stop", Text()),
    Column("report", Text()),
)

meta = Table("jelou_meta", metadata, Column("name", String(40), primary_key=True), Column("value", Text()))
