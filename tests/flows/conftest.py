"""One real Prefect server for the session, and a simulated Jelou for each test."""

import pytest
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.testing.utilities import prefect_test_harness

from jelou_rotation.simulator import Simulator, running


@pytest.fixture(scope="session")
def prefect_server():
    # The heartbeat's thread is joined at the end of each flow, which takes a second (measured).
    with prefect_test_harness(), temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield


@pytest.fixture
def simulator(prefect_server, monkeypatch):
    simulator = Simulator()
    monkeypatch.setenv("JELOU_API_KEY", "demo-key")
    monkeypatch.setenv("JELOU_ALLOW_PRIVATE_HOSTS", "true")
    with running(simulator) as url:
        monkeypatch.setenv("JELOU_BASE_URL", f"{url}/jelouapi/v1")
        yield simulator
