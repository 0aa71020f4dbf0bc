"""The set-up of a Prefect server, on one of its own: the tests' shared server runs no automations."""

import asyncio
import json
import os
import queue
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from prefect import flow, tags
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate, WorkPoolUpdate
from prefect.events.schemas.automations import AutomationCore
from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.states import Failed

from jelou_rotation.errors import SettingsError
from tasks.lock import LOCK, keeps_others_out
from tasks.server_setup import NOT_SENT, WORK_POOL, read_alarms, set_up_server

REPOSITORY = Path(__file__).parents[2]
ALARMS = REPOSITORY / "deployments/automations.yaml"
TEMPLATE = REPOSITORY / "deployments/work-pool.json"
FAILED_RUN = "jelou-rotation, a run failed"
PATIENCE_SECONDS = 60


def eventually(look):
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (found := look()):
        assert time.monotonic() < deadline, f"not within {PATIENCE_SECONDS} seconds"
        time.sleep(0.1)
    return found


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    settings = {
        "PREFECT_HOME": str(tmp_path_factory.mktemp("prefect")),
        "PREFECT_API_URL": url,
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_UI_URL": f"http://127.0.0.1:{port}",
    }
    command = [sys.executable, "-m", "prefect", "server", "start"]
    process = subprocess.Popen(command, env=os.environ | settings, start_new_session=True, stdout=subprocess.DEVNULL)
    try:
        eventually(lambda: process.poll() is not None or answers(f"{url}/health"))
        with temporary_settings({PREFECT_API_URL: url, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
            yield url
    finally:
        process.terminate()
        process.wait(PATIENCE_SECONDS)


def answers(url):
    try:
        urllib.request.urlopen(url, timeout=5).close()  # noqa: S310 - its own server
    except OSError:
        return False
    return True


@pytest.fixture
def messages():
    """What arrives at a listener, which a notification block called `ops` sends to."""
    arrived = queue.SimpleQueue()

    class Listener(BaseHTTPRequestHandler):
        def do_POST(self):
            arrived.put(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_arguments):
            pass

    with HTTPServer(("127.0.0.1", 0), Listener) as listener:
        threading.Thread(target=listener.serve_forever, daemon=True).start()
        yield arrived, f"http://127.0.0.1:{listener.server_port}/"
        listener.shutdown()


@pytest.fixture
async def client(server):
    async with get_client() as client:
        yield client


def changes(lines):
    return [line for line in lines if "created" in line or "changed" in line]


async def alarm(client, name=FAILED_RUN):
    (found,) = await client.read_automations_by_name(name)
    return found


async def test_the_first_set_up_makes_everything_and_the_second_changes_nothing(client):
    first = await set_up_server(ALARMS, None, TEMPLATE)
    second = await set_up_server(ALARMS, None, TEMPLATE)

    assert len(changes(first)) == 2 + len(read_alarms(ALARMS))
    assert not changes(second)
    assert second[-1] == NOT_SENT
    assert len(await client.read_automations()) == len(read_alarms(ALARMS))
    assert (await client.read_work_pool(WORK_POOL)).base_job_template == json.loads(TEMPLATE.read_text())


async def test_a_changed_alarm_is_put_back(client):
    await set_up_server(ALARMS, None, TEMPLATE)
    before = await alarm(client)
    threshold = before.trigger.model_copy(update={"threshold": 50})
    changed = {name: getattr(before, name) for name in ("name", "enabled", "actions")} | {"trigger": threshold}
    await client.update_automation(before.id, AutomationCore(**changed))

    lines = await set_up_server(ALARMS, None, TEMPLATE)

    assert changes(lines) == [f"alarm {FAILED_RUN!r}: changed"]
    assert await alarm(client) == before


async def test_an_alarm_that_somebody_switched_off_stays_off_and_it_is_said(client):
    await set_up_server(ALARMS, None, TEMPLATE)
    await client.pause_automation((await alarm(client)).id)

    lines = await set_up_server(ALARMS, None, TEMPLATE)
    switched_off = await alarm(client)
    await client.resume_automation(switched_off.id)

    assert f"alarm {FAILED_RUN!r}: already so; somebody switched it off, and so it stays" in lines
    assert not switched_off.enabled


async def test_a_changed_lock_and_pool_are_put_back_and_what_else_the_pool_has_stays(client):
    await set_up_server(ALARMS, None, TEMPLATE)
    template = json.loads(TEMPLATE.read_text())
    template["variables"]["properties"]["env"]["default"] = {"THEIRS": "1"}
    await client.update_work_pool(WORK_POOL, WorkPoolUpdate(base_job_template=template))
    await client.update_global_concurrency_limit(LOCK, GlobalConcurrencyLimitUpdate(active=False))

    lines = await set_up_server(ALARMS, None, TEMPLATE)

    assert len(changes(lines)) == 2
    pool = await client.read_work_pool(WORK_POOL)
    environment = pool.base_job_template["variables"]["properties"]["env"]["default"]
    assert environment == {"THEIRS": "1", "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}
    assert keeps_others_out(await client.read_global_concurrency_limit_by_name(LOCK))


@pytest.mark.parametrize("notify", ["nobody", "slack-webhook/nobody", "secret/not-for-messages"])
async def test_a_block_that_cannot_send_is_refused_in_words(client, notify):
    await Secret(value="canary").asave("not-for-messages", overwrite=True)

    with pytest.raises(SettingsError, match="block"):
        await set_up_server(ALARMS, notify, TEMPLATE)


async def test_a_failed_run_reaches_the_people_with_its_name_its_words_and_its_address(client, messages):
    arrived, url = messages
    words = {"subject": "{{subject}}", "body": "{{body}}"}
    await CustomWebhookNotificationBlock(name="ops", url=url, json_data=words).asave("ops", overwrite=True)
    await set_up_server(ALARMS, "custom-webhook/ops", TEMPLATE)
    assert NOT_SENT not in await set_up_server(ALARMS, None, TEMPLATE)

    @flow(flow_run_name="rotate customers.yaml", persist_result=False)
    async def somebody_elses():
        return Failed(message="not ours")

    @flow(flow_run_name="rotate customers.yaml", persist_result=False)
    async def ours():
        return Failed(name="NeedsAttention", message="1 of 3 projects needs attention: 1 drifted.")

    await somebody_elses(return_state=True)
    with tags("jelou"):
        state = await ours(return_state=True)

    message = arrived.get(timeout=PATIENCE_SECONDS)
    run = state.state_details.flow_run_id
    assert message["subject"] == "jelou-rotation: rotate customers.yaml is NeedsAttention"
    assert message["body"].splitlines()[0] == "1 of 3 projects needs attention: 1 drifted."
    assert message["body"].endswith(f"/runs/flow-run/{run}")
    assert arrived.empty()


# In processes of their own: Prefect keeps, for the whole process, to the server that it first asked for a lock.
HOLD = """
import asyncio
from prefect import flow
from jelou_rotation.errors import Busy
from tasks.lock import one_run_at_a_time

@flow(flow_run_name="rotate customers.yaml", persist_result=False)
async def hold():
    try:
        async with one_run_at_a_time():
            print("held", flush=True)
            await asyncio.to_thread(input)
    except Busy as refusal:
        print(refusal, flush=True)

asyncio.run(hold())
"""


async def begin_to_hold(server):
    """A run that holds the lock until it is told a line, and the first line it says itself."""
    environment = os.environ | {"PREFECT_API_URL": server, "PYTHONPATH": str(REPOSITORY)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HOLD, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    return process, (await process.stdout.readline()).decode()


async def test_who_meets_a_run_at_work_is_told_its_name(client, server):
    holder, first_words = await begin_to_hold(server)
    second, refusal = await begin_to_hold(server)
    await holder.communicate(b"\n")
    await second.communicate()

    assert first_words == "held\n"
    assert refusal.startswith("The run 'rotate customers.yaml' (Running) is at work")
    assert (await client.read_global_concurrency_limit_by_name(LOCK)).active_slots == 0
