"""What the tests of whole runs may ask for."""

import pytest

from jelou_rotation.simulator import running
from tests.domain.world import KEY, Jelou, Receiver


@pytest.fixture
def simulator(monkeypatch, tmp_path):
    """A simulated Jelou without an integration, and the settings that lead to it and to an empty store."""
    jelou = Jelou()
    monkeypatch.setenv("JELOU_API_KEY", "demo-key")
    monkeypatch.setenv("JELOU_ALLOW_PRIVATE_HOSTS", "true")
    monkeypatch.setenv("JELOU_STORE_URL", f"sqlite:///{tmp_path}/records.db")
    monkeypatch.setenv("JELOU_STORE_KEY", KEY)
    monkeypatch.setenv("TOKEN", "canary-token")
    with running(jelou) as url:
        monkeypatch.setenv("JELOU_BASE_URL", f"{url}/platform/v1")
        yield jelou


@pytest.fixture
def receiver(simulator):
    return Receiver(simulator)
