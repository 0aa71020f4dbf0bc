"""Records, the fingerprints of their credentials, their history."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_Moment = sa.DateTime(timezone=True)


def _credential(slot: str) -> list[sa.Column[Any]]:
    return [
        sa.Column(f"{slot}_value", sa.Text()),
        sa.Column(f"{slot}_auth_type", sa.String(20)),
        sa.Column(f"{slot}_made_at", _Moment),
        sa.Column(f"{slot}_fingerprint", sa.String(64)),
    ]


def upgrade() -> None:
    op.create_table(
        "jelou_records",
        sa.Column("project_id", sa.String(200), primary_key=True),
        sa.Column("step", sa.String(20), nullable=False),
        *_credential("current"),
        *_credential("pending"),
        *_credential("previous"),
        sa.Column("overlap_until", _Moment),
        sa.Column("accepted_before", sa.Boolean()),
        sa.Column("keeps_overlap", sa.Boolean(), nullable=False),
        sa.Column("handed_over", sa.Boolean(), nullable=False),
        sa.Column("integration", sa.Text()),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("parked", sa.Boolean(), nullable=False),
        sa.Column("made", sa.Integer(), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("holder", sa.Text()),
        sa.Column("run_id", sa.Text()),
        sa.Column("lease_until", _Moment),
    )
    op.create_table(
        "jelou_fingerprints",
        sa.Column("fingerprint", sa.String(64), primary_key=True),
        sa.Column("project_id", sa.String(200), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
    )
    op.create_index("jelou_fingerprints_project", "jelou_fingerprints", ["project_id", "number"])
    op.create_table(
        "jelou_history",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True),
        sa.Column("project_id", sa.String(200), nullable=False),
        sa.Column("at", _Moment, nullable=False),
        sa.Column("name", sa.String(40), nullable=False),
        sa.Column("run_id", sa.Text()),
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
    )
    op.create_index("jelou_history_project", "jelou_history", ["project_id", "id"])
    op.create_table(
        "jelou_meta",
        sa.Column("name", sa.String(40), primary_key=True),
        sa.Column("value", sa.Text()),
    )
