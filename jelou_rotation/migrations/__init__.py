"""The schema of the record store, revision by revision, run by alembic when a store is opened."""
