"""Run by alembic, on the connection it is given."""

from alembic import context

from jelou_rotation.records.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    # Prefect's own database, which this one may share, has an `alembic_version` already.
    version_table="jelou_schema",
)
with context.begin_transaction():
    context.run_migrations()
