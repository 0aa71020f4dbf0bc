"""In which run a credential was made or brought in, and the parts of a run with shards."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("jelou_records", sa.Column("made_in", sa.Text()))
    op.create_table(
        "jelou_parts",
        sa.Column("run_id", sa.String(40), primary_key=True),
        sa.Column("part", sa.Integer(), primary_key=True),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("beat_at", sa.DateTime(timezone=True)),
        sa.Column("holder", sa.Text()),
        sa.Column("done", sa.Integer(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("requests", sa.Text()),
        sa.Column("stop", sa.Text()),
        sa.Column("report", sa.Text()),
    )
