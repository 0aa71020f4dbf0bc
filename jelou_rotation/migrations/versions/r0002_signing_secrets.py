"""The secret Jelou signs with, and whether one was asked for."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("jelou_records", sa.Column("signing_value", sa.Text()))
    op.add_column("jelou_records", sa.Column("signing_made_at", sa.DateTime(timezone=True)))
    # The default is for the records that are there already.
    op.add_column("jelou_records", sa.Column("signing_asked", sa.Boolean(), nullable=False, server_default=sa.false()))
