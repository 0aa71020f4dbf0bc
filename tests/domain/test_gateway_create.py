"""POST: to create an integration, and to make a new signing secret."""

import json
import re
import socket
import threading
import traceback
from contextlib import contextmanager

import httpx
import pytest
from pydantic import SecretStr

from jelou_rotation import errors
from jelou_rotation.gateway import ApiKey, Created, Gateway, Integration
from jelou_rotation.simulator import Fault, Simulator, Switches, listening

HOOK = "https://x.example/hook"
FIELDS = {"webhookUrl": HOOK, "authType": "bearer", "authorization": "canary-value"}
KEY = ApiKey(SecretStr("demo-key"))
POSTS = {
    "create": lambda gateway, **options: gateway.create("prj", FIELDS, **options),
    "regenerate": lambda gateway, **options: gateway.regenerate("prj", **options),
}


@pytest.fixture(params=POSTS)
def post(request):
    return POSTS[request.param]


class Jelou(Simulator):
    """The simulated Jelou, which notes the secrets it has made."""

    def __init__(self, **switches):
        super().__init__(Switches(second_create="overwrite", **switches))
        self.made = []

    def new_secret(self):
        self.made.append(super().new_secret())
        return self.made[-1]

    def gateway(self):
        return Gateway(f"{self.base_url}/jelouapi/v1", KEY, timeout_seconds=5)


@pytest.fixture
async def jelou():
    """With an integration, which a second create replaces."""
    async with listening(jelou := Jelou()):
        jelou.add_project("prj")
        jelou.made.clear()
        yield jelou


def scripted(*answers):
    """A gateway that gets these answers in order, and the requests it has sent."""
    requests, left = [], list(answers)

    def answer(request):
        requests.append(request)
        return left.pop(0)

    return Gateway("https://gateway.example/v1", KEY, transport=httpx.MockTransport(answer)), requests


@pytest.mark.parametrize("shape", ["flat", "envelope"])
async def test_what_is_created_has_the_fields_given_and_its_secret_is_handed_over(shape):
    async with listening(jelou := Jelou(shape=shape)), jelou.gateway() as gateway:
        created = await gateway.create("prj", FIELDS)

    project = jelou.projects["prj"]
    assert (project.webhook_url, project.auth_type, project.authorization) == (HOOK, "bearer", "canary-value")
    assert created.signing_secret.get_secret_value() == project.signing_secret
    assert created.integration == Integration(HOOK, "bearer" if shape == "flat" else None)
    assert gateway.counts == {"POST": 1}


@pytest.mark.parametrize("shape", ["flat", "envelope"])
async def test_a_new_secret_is_handed_over_and_nothing_else_changes(shape):
    async with listening(jelou := Jelou(shape=shape)), jelou.gateway() as gateway:
        before = jelou.add_project("prj")
        first = before.signing_secret
        secret = await gateway.regenerate("prj")

    assert secret.get_secret_value() == jelou.projects["prj"].signing_secret != first
    assert jelou.projects["prj"] is before
    assert gateway.counts == {"POST": 1}


async def test_a_create_sends_exactly_the_fields_given_and_a_regenerate_no_body():
    gateway, requests = scripted(httpx.Response(201, json={}), httpx.Response(299, json={}))
    async with gateway:
        await gateway.create("a/b", {"webhookUrl": HOOK})
        await gateway.regenerate("a/b")

    create, regenerate = requests
    assert (create.method, str(create.url)) == ("POST", "https://gateway.example/v1/external-support/a%2Fb")
    assert json.loads(create.content) == {"webhookUrl": HOOK}
    assert create.headers["Content-Type"] == "application/json"
    assert (regenerate.method, str(regenerate.url)) == ("POST", f"{create.url}/secret/regenerate")
    assert regenerate.content == b""


@pytest.mark.parametrize(
    "body",
    [
        pytest.param({}, id="nothing"),
        pytest.param({"status": 1, "message": ["ok"]}, id="envelope without data"),
        pytest.param({"status": 1, "data": {"brainId": "prj"}}, id="data without it"),
        pytest.param({"signingSecret": None}, id="null"),
        pytest.param({"signingSecret": ""}, id="empty"),
        pytest.param({"signingSecret": {"canary": 1}}, id="no text"),
    ],
)
async def test_an_answer_without_a_secret_is_told_as_none(body):
    gateway, _ = scripted(httpx.Response(200, json=body), httpx.Response(200, json=body))
    async with gateway:
        assert await gateway.create("prj", FIELDS) == Created(Integration(), None)
        assert await gateway.regenerate("prj") is None


async def test_neither_an_integration_nor_what_is_shown_of_a_creation_holds_the_secret():
    body = {"webhookUrl": HOOK, "signingSecret": "canary-secret"}
    gateway, _ = scripted(httpx.Response(200, json=body))
    async with gateway:
        created = await gateway.create("prj", FIELDS)

    assert created.signing_secret.get_secret_value() == "canary-secret"
    assert "canary" not in repr(created) + str(created)
    assert created.integration == Integration(HOOK) == Integration.parse(body)


MAY_HAVE_ACTED = {
    "500": (Fault(kind="status", status=500, acts=True), errors.ServerTrouble),
    "408": (Fault(kind="status", status=408, retry_after="0", acts=True), errors.ServerTrouble),
    "503 with Retry-After": (Fault(kind="status", status=503, retry_after="0", acts=True), errors.ServerTrouble),
    "reset before": (Fault(kind="reset_before"), errors.NoAnswer),
    "reset after": (Fault(kind="reset_after"), errors.NoAnswer),
    "garbage": (Fault(kind="garbage", acts=True), errors.NoAnswer),
    "empty": (Fault(kind="empty", acts=True), errors.NoAnswer),
    "truncated": (Fault(kind="truncated", acts=True), errors.NoAnswer),
    "html": (Fault(kind="html", acts=True), errors.NoAnswer),
    "201 without a body": (Fault(kind="empty", status=201, acts=True), errors.NoAnswer),
    "2xx that says failure": (Fault(kind="status_zero", acts=True), errors.Contradicted),
}


@pytest.mark.parametrize(("fault", "kind"), MAY_HAVE_ACTED.values(), ids=MAY_HAVE_ACTED)
async def test_a_post_is_not_sent_again_when_jelou_may_have_acted(jelou, post, fault, kind):
    jelou.add_fault(fault)
    async with jelou.gateway() as gateway:
        with pytest.raises(errors.RowTrouble) as caught:
            await post(gateway)

    assert type(caught.value) is kind
    assert caught.value.may_have_acted
    assert jelou.requests_by_method == gateway.counts == {"POST": 1}
    assert len(jelou.made) == fault.carries_out
    shown = "".join(traceback.format_exception(caught.value))
    assert not [word for word in (*jelou.made, "canary", "demo-key") if word in shown]


async def test_a_post_that_only_had_to_wait_is_sent_again_and_acts_once(jelou, post):
    jelou.add_fault(Fault(kind="status", status=429, retry_after="0", times=2))
    asked = []
    async with jelou.gateway() as gateway:
        await post(gateway, still_allowed=lambda: asked.append(dict(gateway.counts)))

    assert gateway.counts == {"POST": 3, "pauses": 2}
    assert [each.get("POST", 0) for each in asked] == [0, 1, 2]
    assert len(jelou.made) == 1


async def test_a_post_that_is_no_longer_allowed_does_not_leave(jelou, post):
    def refuse():
        raise errors.LeaseLost("prj: the lease ran out")

    async with jelou.gateway() as gateway:
        with pytest.raises(errors.LeaseLost):
            await post(gateway, still_allowed=refuse)

    assert not jelou.requests_by_method


@pytest.mark.parametrize("status", [307, 400, 401, 403, 404, 405, 409, 422])
async def test_a_refused_post_says_that_nothing_was_made_and_repeats_no_word_of_the_answer(post, status):
    gateway, requests = scripted(httpx.Response(status, json={"signingSecret": "canary", "message": "canary-value"}))
    async with gateway:
        with pytest.raises(errors.RowTrouble) as caught:
            await post(gateway)

    assert not caught.value.may_have_acted
    assert str(caught.value) == f"Jelou answered {status} to POST"
    assert len(requests) == 1


async def test_a_row_with_a_key_of_its_own_is_posted_with_that_key(post):
    gateway, requests = scripted(httpx.Response(200, json={}))
    async with gateway:
        await post(gateway, caller=ApiKey(SecretStr("own")))

    assert requests[0].headers["x-api-key"] == "own"


class Keeper:
    """
    A server that keeps its first connection open for one answer and then drops it, `when` idle or when asked again.

    `heads` holds the head of every request that arrived; later connections are answered and closed.
    """

    def __init__(self, when):
        self.when = when
        self.heads = []
        self.dropped = threading.Event()

    def methods(self):
        return [head.split()[0].decode() for head in self.heads]

    def serve(self, listener):
        with listener.accept()[0] as first:
            self.answer(first)
            if self.when == "asked again":
                self.read(first)
        self.dropped.set()
        while True:
            with listener.accept()[0] as later:
                if not self.answer(later):
                    return

    def answer(self, connection):
        if not self.read(connection):
            return False
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        return True

    def read(self, connection):
        received = b""
        while b"\r\n\r\n" not in received:
            chunk = connection.recv(65536)
            if not chunk:
                return False
            received += chunk
        head, _, body = received.partition(b"\r\n\r\n")
        missing = int((re.search(rb"content-length: (\d+)", head.lower()) or [0, 0])[1]) - len(body)
        while missing > 0:
            missing -= len(connection.recv(65536))
        self.heads.append(head)
        return True


@contextmanager
def keeping(when):
    keeper = Keeper(when)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=keeper.serve, args=[listener])
        thread.start()
        try:
            yield keeper, f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            socket.create_connection(listener.getsockname()).close()
            thread.join()


@pytest.mark.parametrize("when", ["idle", "asked again"])
async def test_a_post_on_a_kept_connection_that_died_is_not_repeated_by_the_transport(post, when):
    with keeping(when) as (keeper, url):
        async with Gateway(url, KEY, timeout_seconds=5) as gateway:
            await gateway.get("prj")
            if when == "idle":
                # Blocks the loop too, so that the client has not noticed when it sends.
                assert keeper.dropped.wait(5)
            with pytest.raises(errors.NoAnswer) as caught:
                await post(gateway)

    assert caught.value.may_have_acted
    assert keeper.methods() == (["GET"] if when == "idle" else ["GET", "POST"])


@pytest.mark.parametrize("when", ["idle", "asked again"])
async def test_a_get_on_a_kept_connection_that_died_is_repeated_by_the_transport(when):
    with keeping(when) as (keeper, url):
        async with Gateway(url, KEY, timeout_seconds=5) as gateway:
            await gateway.get("prj")
            if when == "idle":
                assert keeper.dropped.wait(5)
            await gateway.get("prj")

    assert keeper.methods() == ["GET"] * (2 if when == "idle" else 3)
    assert gateway.counts == {"GET": 2}


async def test_a_post_without_a_body_names_no_type_of_it():
    with keeping("idle") as (keeper, url):
        async with Gateway(url, KEY, timeout_seconds=5) as gateway:
            await gateway.regenerate("prj")

    (head,) = keeper.heads
    assert b"content-type" not in head.lower()
    assert b"\r\ncontent-length: 0" in head.lower()
