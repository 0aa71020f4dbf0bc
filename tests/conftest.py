"""What every test may ask for."""

import os

import pytest

# Before anything imports Prefect: tests phone nobody, and a person's own settings do not reach them.
os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
os.environ["DO_NOT_TRACK"] = "1"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch, tmp_path):
    """A test sees only the settings it makes, and writes only into its own folder."""
    for name in list(os.environ):
        if name.startswith("JELOU_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("JELOU_SECRETS_DIR", str(tmp_path / "no-secrets-here"))
    monkeypatch.chdir(tmp_path)
