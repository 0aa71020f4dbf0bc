"""Prefect tasks: thin wrappers with retries, run names and visibility."""
