import asyncio
import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import SimpleNamespace

import aiohttp
import httpx
import pytest
from pydantic import SecretStr

from jelou_rotation import errors
from jelou_rotation.gateway import ApiKey, ClientPair, Gateway, Integration

BASE = "https://gateway.example/platform/v1"
FLAT = {"id": "int_1", "brainId": "prj_1", "webhookUrl": "https://x.example/hook", "authType": "bearer"}
SENT = {"webhookUrl": "https://x.example/hook", "authType": "bearer", "authorization": "canary-value"}


class Server:
    """A gateway that gives the answers it was told to, in order, and remembers what it was asked."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.requests = []

    def __call__(self, request):
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def gateway(self, caller=None, **options):
        return Gateway(BASE, caller or ApiKey(SecretStr("canary-key")), transport=httpx.MockTransport(self), **options)


def answer(status=200, body=FLAT, **headers):
    return httpx.Response(status, json=body, headers={name.replace("_", "-"): text for name, text in headers.items()})


async def error_of(server, fields=SENT):
    async with server.gateway() as gateway:
        with pytest.raises(errors.RowTrouble) as caught:
            await gateway.patch("prj_1", fields)
    assert "canary" not in str(caught.value) + repr(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return caught.value


async def test_patch_sends_exactly_the_fields_given():
    server = Server(answer())

    async with server.gateway() as gateway:
        await gateway.patch("prj_1", {"webhookUrl": "https://x.example/hook"})

    (request,) = server.requests
    assert request.method == "PATCH"
    assert str(request.url) == f"{BASE}/external-support/prj_1"
    assert json.loads(request.content) == {"webhookUrl": "https://x.example/hook"}
    assert request.headers["Content-Type"] == "application/json"
    assert request.headers["User-Agent"].startswith("jelou-rotation/")


@pytest.mark.parametrize(
    ("caller", "header", "value", "other"),
    [
        pytest.param(ApiKey(SecretStr("12|abc")), "x-api-key", "12|abc", "Authorization", id="key"),
        pytest.param(
            ClientPair(SecretStr("my_client_id"), SecretStr("my_client_secret")),
            "Authorization",
            "Basic bXlfY2xpZW50X2lkOm15X2NsaWVudF9zZWNyZXQ=",
            "x-api-key",
            id="basic",
        ),
    ],
)
async def test_one_scheme_a_request(caller, header, value, other):
    server = Server(answer())

    async with server.gateway(caller) as gateway:
        await gateway.get("prj_1")

    assert server.requests[0].headers[header] == value
    assert other not in server.requests[0].headers


async def test_a_row_with_a_key_of_its_own_is_read_with_that_key():
    server = Server(answer())

    async with server.gateway() as gateway:
        await gateway.get("prj_1", ApiKey(SecretStr("own")))

    assert server.requests[0].headers["x-api-key"] == "own"


@pytest.mark.parametrize("project_id", ["=cmd()", "<script>", "a/b", "a b", "ñ", "..%2f", "?x=1", "#x", "0123"])
async def test_a_project_id_stays_one_segment_of_the_path(project_id):
    server = Server(answer())

    async with server.gateway() as gateway:
        await gateway.get(project_id)

    url = server.requests[0].url
    assert url.path == f"/platform/v1/external-support/{project_id}"
    assert not url.query
    assert not url.fragment
    assert url.raw_path.count(b"/") == 4


@pytest.mark.parametrize(
    ("body", "integration"),
    [
        pytest.param(
            FLAT | {"updatedAt": "2026-01-22T09:15:00Z"},
            Integration("https://x.example/hook", "bearer", datetime(2026, 1, 22, 9, 15, tzinfo=UTC)),
            id="flat",
        ),
        pytest.param(
            {
                "message": ["ok"],
                "statusMessage": "success",
                "status": 1,
                "data": {"brainId": "p", "webhookUrl": "https://x.example/", "updatedAt": "2026-01-22T09:15:00.123Z"},
            },
            Integration("https://x.example/", None, datetime(2026, 1, 22, 9, 15, tzinfo=UTC)),
            id="envelope",
        ),
        pytest.param(
            {"status": 1, "message": ["Integration deleted successfully"]}, Integration(), id="envelope without data"
        ),
        pytest.param({}, Integration(), id="nothing known"),
        pytest.param(FLAT | {"authType": "hmac", "new": 1}, Integration("https://x.example/hook", "hmac"), id="future"),
        pytest.param({"webhookUrl": None, "authType": 7, "updatedAt": "soon"}, Integration(), id="odd types"),
        pytest.param(
            {"updatedAt": "2026-01-22T11:15:00+02:00"},
            Integration(updated_at=datetime(2026, 1, 22, 9, 15, tzinfo=UTC)),
            id="offset",
        ),
        pytest.param(
            {"updatedAt": "2026-01-22T09:15:00"},
            Integration(updated_at=datetime(2026, 1, 22, 9, 15, tzinfo=UTC)),
            id="no zone",
        ),
    ],
)
async def test_both_shapes_are_understood_and_what_is_missing_stays_unknown(body, integration):
    async with Server(answer(body=body)).gateway() as gateway:
        assert await gateway.get("prj_1") == integration


@pytest.mark.parametrize(
    ("status", "kind", "may_have_acted"),
    [
        (400, errors.InvalidRequest, False),
        (401, errors.KeyRefused, False),
        (403, errors.AccessDenied, False),
        (404, errors.NotFound, False),
        (405, errors.Unexpected, False),
        (408, errors.ServerTrouble, True),
        (409, errors.InvalidRequest, False),
        (418, errors.Unexpected, False),
        (422, errors.InvalidRequest, False),
        (500, errors.ServerTrouble, True),
        (502, errors.ServerTrouble, True),
        (503, errors.ServerTrouble, True),
        (504, errors.ServerTrouble, True),
        (599, errors.ServerTrouble, True),
    ],
)
async def test_the_status_decides_the_class_of_the_error(status, kind, may_have_acted):
    error = await error_of(Server(answer(status, {"message": "canary-value canary-key"})))

    assert type(error) is kind
    assert error.may_have_acted is may_have_acted
    assert str(error) == f"Jelou answered {status} to PATCH"


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_is_an_error_and_never_followed(status):
    server = Server(answer(status, Location="https://elsewhere.example/canary"))

    assert type(await error_of(server)) is errors.Unexpected
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("response", "kind"),
    [
        pytest.param(httpx.Response(200, text="<html>canary-value</html>"), errors.NoAnswer, id="html"),
        pytest.param(httpx.Response(200, text=""), errors.NoAnswer, id="empty"),
        pytest.param(httpx.Response(200, text='{"webhookUrl": "canary'), errors.NoAnswer, id="truncated"),
        pytest.param(httpx.Response(200, text='["canary"]'), errors.NoAnswer, id="no object"),
        pytest.param(httpx.Response(200, content=b"\xff\xfe\x00"), errors.NoAnswer, id="bytes"),
        pytest.param(httpx.Response(200, text="[" * 100_000), errors.NoAnswer, id="deep"),
        pytest.param(httpx.Response(200, content=b" " * 1_100_000), errors.NoAnswer, id="large"),
        pytest.param(answer(200, {"status": 0, "message": "canary-value"}), errors.Contradicted, id="status 0"),
        pytest.param(answer(200, {"status": "failed"}), errors.Contradicted, id="status text"),
        pytest.param(answer(200, {"status": 1, "error": {"code": "canary"}}), errors.Contradicted, id="error object"),
        pytest.param(httpx.ReadTimeout("canary"), errors.NoAnswer, id="read timeout"),
        pytest.param(httpx.ReadError("canary"), errors.NoAnswer, id="reset"),
        pytest.param(httpx.ConnectTimeout("canary"), errors.NoAnswer, id="what httpx-aiohttp calls a reset"),
        pytest.param(aiohttp.ClientPayloadError("canary"), errors.NoAnswer, id="a class that is not httpx's"),
        pytest.param(RuntimeError("canary"), errors.NoAnswer, id="a class nobody expects"),
        pytest.param(httpx.ConnectError("canary"), errors.Unreachable, id="no connection"),
    ],
)
async def test_whatever_breaks_becomes_an_error_that_says_whether_jelou_may_have_acted(response, kind):
    error = await error_of(Server(response))

    assert type(error) is kind
    assert error.may_have_acted is (kind is not errors.Unreachable)


@pytest.mark.parametrize(
    ("body", "details"),
    [
        pytest.param({"code": "unprocessable_entity"}, " (unprocessable_entity)", id="known code"),
        pytest.param({"error": {"code": "forbidden_bot"}}, " (forbidden_bot)", id="known code inside"),
        pytest.param({"validationError": {"webhookUrl": ["canary"]}}, " (webhookUrl)", id="our field"),
        pytest.param({"code": "canary-value", "validationError": {"canary-key": 1}}, "", id="an echo"),
        pytest.param({"code": ["x"], "error": "x", "validationError": "webhookUrl"}, "", id="odd types"),
    ],
)
async def test_an_error_repeats_only_words_that_cannot_be_an_echo(body, details):
    assert str(await error_of(Server(answer(422, body)))) == f"Jelou answered 422 to PATCH{details}"


@pytest.fixture
def waits(monkeypatch):
    """How long a refused request waited until it was sent again, in seconds; here no time passes."""
    seconds = []

    async def sleep(pause):
        seconds.append(pause)

    monkeypatch.setattr("jelou_rotation.gateway.asyncio", SimpleNamespace(sleep=sleep))
    return seconds


@pytest.mark.parametrize(
    "throttled",
    [
        pytest.param(answer(429, Retry_After="0"), id="429 with seconds"),
        pytest.param(answer(429, Retry_After=format_datetime(datetime.now(UTC) - timedelta(hours=1))), id="a date"),
        pytest.param(answer(503, Retry_After="0"), id="503 with seconds"),
    ],
)
async def test_a_pause_asked_for_is_taken_and_the_request_sent_again(throttled, waits):
    server = Server(throttled, throttled, answer())

    async with server.gateway() as gateway:
        assert (await gateway.patch("prj_1", SENT)).webhook_url == "https://x.example/hook"

    assert gateway.counts == {"PATCH": 3, "pauses": 2}
    assert len({request.content for request in server.requests}) == 1


class Turns:
    """A pace that makes nobody wait and notes what it was told."""

    def __init__(self):
        self.told = []

    async def turn(self):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def accepted(self):
        self.told.append("accepted")

    def refused(self, retry_after):
        self.told.append(("refused", retry_after))

    def overloaded(self, retry_after):
        self.told.append(("overloaded", retry_after))


@pytest.fixture
def pace(monkeypatch):
    turns = Turns()
    monkeypatch.setattr("jelou_rotation.gateway.Pace", lambda _: turns)
    return turns


async def test_the_pace_is_told_what_every_answer_says_about_it(pace, waits):
    told_nothing = [httpx.ConnectError("no"), answer(500), answer(429, Retry_After="121")]
    telling = [answer(429, Retry_After="7"), answer(429), answer(503, Retry_After="2"), answer(404)]
    server = Server(*told_nothing, *telling)
    async with server.gateway() as gateway:
        for _ in range(4):
            with pytest.raises(errors.RowTrouble):
                await gateway.get("prj_1")

    assert pace.told == [("refused", 7), ("refused", None), ("overloaded", 2), "accepted"]
    # Also where the pace lets others go on.
    assert waits == [7, 0.1, 2]


async def test_a_date_to_wait_for_is_read_by_the_clock_of_the_server_that_gave_it(pace, waits):
    theirs = datetime.now(UTC) - timedelta(hours=3)
    later = format_datetime(theirs + timedelta(seconds=30))
    server = Server(answer(429, Retry_After=later, Date=format_datetime(theirs)), answer())
    async with server.gateway() as gateway:
        await gateway.get("prj_1")

    assert pace.told == [("refused", 30), "accepted"]


@pytest.mark.parametrize("retry_after", ["3600", format_datetime(datetime.now(UTC) + timedelta(days=1))])
async def test_a_pause_longer_than_two_minutes_is_given_back_to_the_operator(retry_after):
    error = await error_of(Server(answer(429, Retry_After=retry_after)))

    assert isinstance(error, errors.Throttled)
    assert error.retry_after > 120


@pytest.mark.parametrize("throttled", [answer(429), answer(429, Retry_After="0")])
async def test_a_gateway_that_throttles_for_ever_is_asked_less_and_less_often_and_an_error_in_the_end(
    throttled, pace, waits
):
    server = Server(throttled)

    assert isinstance(await error_of(server), errors.Throttled)
    assert len(server.requests) == 9
    assert waits == [0.05 * 2**before for before in range(8)]


async def test_a_limit_is_that_of_one_key():
    server = Server(answer())
    async with server.gateway(requests_per_second=0.001) as gateway:

        async def ask_for_ever(key):
            while True:
                await gateway.get("prj", ApiKey(SecretStr(key)))

        for key in ("one", "another"):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(ask_for_ever(key), 0.02)

    assert {request.headers["x-api-key"] for request in server.requests} == {"one", "another"}


async def test_of_a_budget_that_is_shared_each_process_sends_one_part():
    async with Server(answer()).gateway(requests_per_second=60) as gateway:
        await gateway.get("prj", ApiKey(SecretStr("known before")))
        gateway.share_budget(3)
        await gateway.get("prj", ApiKey(SecretStr("new")))
        assert [pace.per_second for pace in gateway._paces.values()] == [20, 20]
        gateway.share_budget(2)
        assert [pace.per_second for pace in gateway._paces.values()] == [30, 30]


async def test_a_caller_does_not_show_its_secret():
    assert "canary" not in repr(ApiKey(SecretStr("canary"))) + repr(
        ClientPair(SecretStr("canary"), SecretStr("canary"))
    )


async def test_a_refused_connection_over_a_real_network_means_that_nothing_was_sent():
    async with Gateway("http://127.0.0.1:1", ApiKey(SecretStr("canary-key"))) as gateway:
        with pytest.raises(errors.Unreachable):
            await gateway.patch("prj_1", SENT)


async def test_the_words_a_server_writes_beside_its_status_are_dropped(caplog):
    caplog.set_level("DEBUG")
    echo = httpx.Response(500, extensions={"reason_phrase": b"canary-value"})
    error = await error_of(Server(echo))

    assert "500" in str(error)
    assert "canary" not in caplog.text + str(error)
