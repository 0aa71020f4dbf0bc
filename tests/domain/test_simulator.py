"""The simulator, over real sockets."""

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from urllib.parse import quote

import httpx
import pytest
from pydantic import ValidationError

from jelou_rotation.simulator import Fault, Simulator, Switches, listening, running, serve
from jelou_rotation.simulator.receivers import credential_header, message_event, signature

LONG_AGO = datetime(2020, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)
KEY = {"x-api-key": "demo-key"}


class Api:
    """The API of one simulator, as its callers see it."""

    def __init__(self, http: httpx.Client, url: str) -> None:
        self.http = http
        self.url = url

    def call(self, method, project_id="p1", *, base="jelouapi/v1", suffix="", headers=KEY, **options):
        url = f"{self.url}/{base}/external-support/{quote(project_id, safe='')}{suffix}"
        return self.http.request(method, url, headers=headers, **options)

    def get(self, project_id="p1", **options):
        return self.call("GET", project_id, **options)

    def patch(self, body, project_id="p1", **options):
        return self.call("PATCH", project_id, json=body, **options)


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=10) as client:
        yield client


@pytest.fixture
def simulator() -> Simulator:
    simulator = Simulator()
    simulator.add_project("p1")
    return simulator


@pytest.fixture
def api(simulator, http) -> Iterator[Api]:
    with running(simulator) as url:
        yield Api(http, url)


@contextmanager
def switched(http, **switches) -> Iterator[tuple[Simulator, Api]]:
    simulator = Simulator(Switches(**switches))
    simulator.add_project("p1")
    with running(simulator) as url:
        yield simulator, Api(http, url)


# Switches


def test_every_switch_says_which_unknown_it_stands_for():
    descriptions = [field.description or "" for field in Switches.model_fields.values()]
    assert all(description.startswith("[U] ") for description in descriptions)


def test_a_switch_that_does_not_exist_is_refused():
    with pytest.raises(ValidationError):
        Switches(second_delete="409")


@pytest.mark.parametrize(
    ("base_path", "answering"),
    [
        ("jelouapi/v1", {"jelouapi/v1"}),
        ("platform/v1", {"platform/v1"}),
        ("both", {"jelouapi/v1", "platform/v1"}),
    ],
)
def test_only_the_chosen_base_path_answers(http, base_path, answering):
    with switched(http, base_path=base_path) as (_, api):
        bases = ("jelouapi/v1", "platform/v1", "other/v1")
        assert {base for base in bases if api.get(base=base).status_code == 200} == answering


# The pair is demo-client:demo-secret.
BASIC = {"Authorization": "Basic ZGVtby1jbGllbnQ6ZGVtby1zZWNyZXQ="}


@pytest.mark.parametrize(
    ("auth", "headers", "status"),
    [
        pytest.param("either", KEY, 200, id="either-key"),
        pytest.param("either", BASIC, 200, id="either-basic"),
        pytest.param("api_key", KEY, 200, id="key-key"),
        pytest.param("api_key", BASIC, 401, id="key-basic"),
        pytest.param("basic", KEY, 401, id="basic-key"),
        pytest.param("basic", BASIC, 200, id="basic-basic"),
        pytest.param("either", {}, 401, id="nothing"),
        pytest.param("either", {"x-api-key": "wrong"}, 401, id="wrong-key"),
        pytest.param("either", {"Authorization": "Basic ZGVtby1jbGllbnQ6d3Jvbmc="}, 401, id="wrong-secret"),
        pytest.param("either", {"Authorization": "Basic bm9ib2R5Og=="}, 401, id="unknown-client-no-secret"),
        pytest.param("either", {"Authorization": "Basic not base64"}, 401, id="not-base64"),
        pytest.param("either", {"Authorization": "demo-client:demo-secret"}, 401, id="bare-pair"),
    ],
)
def test_only_the_chosen_scheme_lets_a_caller_in(http, auth, headers, status):
    with switched(http, auth=auth) as (_, api):
        assert api.get(headers=headers).status_code == status


DATED = {"brainId", "webhookUrl", "createdAt", "updatedAt"}
FLAT = {
    "create": {"id", "brainId", "webhookUrl", "authType", "signingSecret", "createdAt"},
    "read": DATED | {"id", "authType"},
    "update": DATED | {"id", "authType"},
    "regenerate": {"signingSecret", "regeneratedAt"},
    "delete": {"message", "statusMessage", "status"},
}
ENVELOPED = {
    "create": {"brainId", "webhookUrl", "signingSecret", "createdAt"},
    "read": DATED,
    "update": DATED,
    "regenerate": {"brainId", "signingSecret"},
    "delete": None,
}


def _every_endpoint(api: Api) -> dict[str, httpx.Response]:
    return {
        "create": api.call("POST", "p2", json={"webhookUrl": "https://x.example/hook"}),
        "read": api.get("p2"),
        "update": api.patch({"webhookUrl": "https://x.example/two"}, "p2"),
        "regenerate": api.call("POST", "p2", suffix="/secret/regenerate"),
        "delete": api.call("DELETE", "p2"),
    }


def test_flat_answers_carry_the_panels_fields(http):
    with switched(http, shape="flat") as (_, api):
        answers = _every_endpoint(api)
    assert {answer.status_code for answer in answers.values()} == {200}
    assert {name: set(answer.json()) for name, answer in answers.items()} == FLAT
    assert answers["update"].json()["webhookUrl"] == "https://x.example/two"


def test_enveloped_answers_carry_the_proses_fields(http):
    with switched(http, shape="envelope") as (_, api):
        answers = _every_endpoint(api)
    bodies = {name: answer.json() for name, answer in answers.items()}
    assert {(body["statusMessage"], body["status"]) for body in bodies.values()} == {("success", 1)}
    data = {name: set(body["data"]) if "data" in body else None for name, body in bodies.items()}
    assert data == ENVELOPED
    assert bodies["update"]["message"] == ["Integration updated successfully"]
    assert bodies["update"]["data"]["webhookUrl"] == "https://x.example/two"


def test_mixed_answers_alternate(http):
    with switched(http, shape="mixed") as (_, api):
        assert ["data" in api.get().json() for _ in range(4)] == [False, True, False, True]


@pytest.mark.parametrize(
    ("shape", "date"), [("flat", "2020-01-02T03:04:05Z"), ("envelope", "2020-01-02T03:04:05.678Z")]
)
def test_only_the_envelopes_dates_have_milliseconds(http, shape, date):
    with switched(http, shape=shape) as (simulator, api):
        simulator.projects["p1"].created_at = LONG_AGO
        body = api.get().json()
    assert body.get("data", body)["createdAt"] == date


@pytest.mark.parametrize("validation_status", [400, 422])
@pytest.mark.parametrize(
    "content",
    [
        pytest.param("", id="nothing"),
        pytest.param("{}", id="empty"),
        pytest.param('{"color": "red"}', id="no-known-field"),
        pytest.param("[]", id="array"),
        pytest.param("not JSON", id="not-json"),
        pytest.param('{"authType": "magic"}', id="unknown-auth-type"),
        pytest.param('{"authType": ["bearer"]}', id="auth-type-array"),
        pytest.param('{"webhookUrl": 7}', id="url-number"),
        pytest.param('{"webhookUrl": ["https://x.example"]}', id="url-array"),
        pytest.param('{"webhookUrl": "hook"}', id="not-a-url"),
        pytest.param('{"webhookUrl": "ftp://x.example/"}', id="other-scheme"),
        pytest.param('{"webhookUrl": "https:///hook"}', id="no-host"),
        pytest.param('{"webhookUrl": "https://[x"}', id="broken-url"),
        pytest.param('{"authorization": null}', id="null"),
    ],
)
def test_a_refused_value_has_the_chosen_status_and_changes_nothing(http, validation_status, content):
    with switched(http, validation_status=validation_status) as (simulator, api):
        assert api.call("PATCH", content=content).status_code == validation_status
        project = simulator.projects["p1"]
    assert (project.auth_type, project.authorization, project.patches) == ("bearer", "old", [])
    assert len(project.received) == 1


def test_create_needs_a_webhook_url(api, simulator):
    assert api.call("POST", "p2", json={"authType": "no_auth"}).status_code == 400
    assert "p2" not in simulator.projects


@pytest.mark.parametrize(
    ("error_body", "keys"),
    [
        ("model", {"message", "statusMessage", "status", "error", "validationError"}),
        ("bare", {"code", "description"}),
        ("message_array", {"message", "statusMessage", "status"}),
        ("echo", {"message", "headers", "body"}),
    ],
)
def test_an_error_has_the_chosen_json_body(http, error_body, keys):
    with switched(http, error_body=error_body) as (_, api):
        answer = api.patch({"authType": "magic"})
    assert answer.status_code == 400
    assert set(answer.json()) == keys


def test_the_error_model_names_the_field_and_not_its_value(api):
    answer = api.patch({"authType": "magic"})
    assert set(answer.json()["validationError"]) == {"authType"}
    assert isinstance(answer.json()["message"], str)
    assert "magic" not in answer.text


def test_an_error_of_the_array_kind_has_an_array_of_messages(http):
    with switched(http, error_body="message_array") as (_, api):
        assert isinstance(api.patch({}).json()["message"], list)


@pytest.mark.parametrize(
    ("error_body", "content_type", "start"),
    [("html", "text/html", b"<!DOCTYPE html>"), ("empty", "application/json", b"")],
)
def test_an_error_without_json_has_the_chosen_body(http, error_body, content_type, start):
    with switched(http, error_body=error_body) as (_, api):
        answer = api.get("nobody")
    assert answer.status_code == 404
    assert answer.headers["Content-Type"].startswith(content_type)
    assert answer.content.startswith(start)
    assert bool(answer.content) == bool(start)


def test_the_worst_error_body_repeats_the_headers_and_the_body(http):
    with switched(http, error_body="echo") as (_, api):
        body = api.patch({"authType": "magic", "authorization": "s3cret"}).json()
    assert body["headers"]["x-api-key"] == "demo-key"
    assert body["body"] == {"authType": "magic", "authorization": "s3cret"}


def test_half_a_surrogate_pair_is_echoed_too(http):
    with switched(http, error_body="echo") as (_, api):
        assert api.call("PATCH", content=r'{"authType": "\ud800"}').status_code == 400


@pytest.mark.parametrize("second_create", ["409", "422"])
def test_a_second_create_is_refused_with_the_chosen_status(http, second_create):
    with switched(http, second_create=second_create) as (simulator, api):
        before = simulator.projects["p1"]
        answer = api.call("POST", json={"webhookUrl": "https://x.example/two"})
    assert answer.status_code == int(second_create)
    assert simulator.projects["p1"] is before


def test_a_second_create_can_overwrite(http):
    with switched(http, second_create="overwrite") as (simulator, api):
        before = simulator.projects["p1"].signing_secret
        answer = api.call("POST", json={"webhookUrl": "https://x.example/two"})
    assert answer.json()["signingSecret"] == simulator.projects["p1"].signing_secret != before


@pytest.mark.parametrize(("keeps", "left"), [(True, "old"), (False, None)])
def test_no_auth_keeps_or_wipes_the_credential(http, keeps, left):
    with switched(http, no_auth_keeps_credential=keeps) as (simulator, api):
        api.patch({"authType": "no_auth"})
    assert simulator.projects["p1"].auth_type == "no_auth"
    assert simulator.projects["p1"].authorization == left


@pytest.mark.parametrize("shape", ["flat", "envelope"])
@pytest.mark.parametrize(
    ("switch", "shown"),
    [
        ("absent", {}),
        ("null", {"authorization": None}),
        ("masked", {"authorization": "********"}),
        ("echoed", {"authorization": "old"}),
    ],
)
def test_get_shows_the_credential_as_chosen(http, shape, switch, shown):
    with switched(http, shape=shape, authorization_in_get=switch) as (_, api):
        body = api.get().json()
    fields = body.get("data", body)
    assert {name: fields[name] for name in fields if name == "authorization"} == shown


@pytest.mark.parametrize("shape", ["flat", "envelope"])
def test_no_answer_but_gets_shows_the_credential(http, shape):
    with switched(http, shape=shape, authorization_in_get="echoed") as (_, api):
        answer = api.patch({"authorization": "new-s3cret"})
    assert "new-s3cret" not in answer.text
    assert answer.status_code == 200


@pytest.mark.parametrize("moves", [True, False])
def test_a_patch_without_effect_moves_updated_at_or_not(http, moves):
    with switched(http, updated_at_moves_on_noop=moves) as (simulator, api):
        project = simulator.projects["p1"]
        project.updated_at = LONG_AGO
        api.patch({"authorization": "old"})
    assert (project.updated_at > LONG_AGO) == moves


def test_a_patch_with_effect_always_moves_updated_at(http):
    with switched(http, updated_at_moves_on_noop=False) as (simulator, api):
        project = simulator.projects["p1"]
        project.updated_at = LONG_AGO
        api.patch({"authorization": "new"})
    assert project.updated_at > LONG_AGO


@pytest.mark.parametrize("visible_after", [0, 1, 2])
def test_get_shows_the_former_state_as_often_as_chosen(http, visible_after):
    with switched(http, visible_after=visible_after) as (simulator, api):
        former = simulator.projects["p1"].webhook_url
        answer = api.patch({"webhookUrl": "https://x.example/two"})
        seen = [api.get().json()["webhookUrl"] for _ in range(visible_after + 2)]
    assert answer.json()["webhookUrl"] == "https://x.example/two"
    assert seen == [former] * visible_after + ["https://x.example/two"] * 2


def test_the_same_patch_again_does_not_make_the_former_state_visible_sooner(http):
    with switched(http, visible_after=1) as (simulator, api):
        former = simulator.projects["p1"].webhook_url
        for _ in range(2):
            api.patch({"webhookUrl": "https://x.example/two"})
        assert api.get().json()["webhookUrl"] == former


# State


def test_a_patch_changes_only_the_fields_it_names(api, simulator):
    project = simulator.projects["p1"]
    url, secret = project.webhook_url, project.signing_secret
    api.patch({"authType": "api_key", "authorization": "new"})
    assert (project.auth_type, project.authorization) == ("api_key", "new")
    assert (project.webhook_url, project.signing_secret) == (url, secret)
    assert project.patches == project.received == [{"authType": "api_key", "authorization": "new"}]
    assert project.patched_at == [project.updated_at]


def test_a_refused_key_acts_on_nothing(api, simulator):
    api.patch({"authorization": "new"}, headers={"x-api-key": "wrong"})
    project = simulator.projects["p1"]
    assert (project.authorization, project.patches) == ("old", [])
    assert project.received == [{"authorization": "new"}]


def test_a_forbidden_project_answers_403_and_the_others_do_not(api, simulator):
    simulator.add_project("p2")
    simulator.forbidden.add("p2")
    assert [api.get(project_id).status_code for project_id in ("p1", "p2")] == [200, 403]


@pytest.mark.parametrize(
    ("method", "suffix"), [("GET", ""), ("PATCH", ""), ("DELETE", ""), ("POST", "/secret/regenerate")]
)
def test_a_project_without_integration_is_not_found(api, method, suffix):
    assert api.call(method, "nobody", suffix=suffix, json={"authType": "no_auth"}).status_code == 404


def test_a_deleted_integration_is_gone(api, simulator):
    assert api.call("DELETE").status_code == 200
    assert api.call("DELETE").status_code == 404
    assert simulator.projects == {}


def test_the_regenerated_secret_is_the_one_held(api, simulator):
    before = simulator.projects["p1"].signing_secret
    shown = api.call("POST", suffix="/secret/regenerate").json()["signingSecret"]
    assert shown == simulator.projects["p1"].signing_secret != before


def test_the_same_seed_makes_the_same_secrets():
    secrets = [Simulator(seed=seed).add_project("p1").signing_secret for seed in (1, 1, 2)]
    assert secrets[0] == secrets[1] != secrets[2]


ODD_IDS = [
    "=cmd()",
    "<script>alert(1)</script>",
    "two words",
    "ñandú 🐦",
    "a/secret/regenerate",
    "100%2F",
    "{p}",
    "a?b#c",
    "línea\nnueva",
]


@pytest.mark.parametrize("project_id", ODD_IDS)
async def test_a_project_id_may_hold_any_character(api, simulator, project_id):
    created = api.call("POST", project_id, json={"webhookUrl": "https://x.example/hook"})
    assert created.json()["brainId"] == project_id
    assert list(simulator.projects) == ["p1", project_id]
    assert api.get(project_id).json()["brainId"] == project_id
    simulator.add_project(project_id)
    assert await simulator.deliver(project_id)


def test_requests_and_answers_are_counted(api, simulator):
    api.http.get(f"{api.url}/elsewhere", headers=KEY)
    api.get(headers={**KEY, "User-Agent": "someone/1"})
    api.patch({})
    assert simulator.requests_by_method == {"GET": 2, "PATCH": 1}
    assert simulator.answers == {"404": 1, "200": 1, "400": 1}
    assert "someone/1" in simulator.user_agents


def test_only_patches_are_kept(api, simulator):
    api.get()
    api.call("POST", json={"webhookUrl": "https://x.example/two"})
    api.patch({})
    assert simulator.projects["p1"].received == [{}]


# Faults


def _hit(api: Api, simulator: Simulator, **fault) -> httpx.Response:
    simulator.add_fault(Fault(**fault))
    return api.patch({"authorization": "new"})


@pytest.mark.parametrize(
    ("kind", "status", "body"),
    [
        ("status", 503, '"status": 0'),
        ("html", 200, "<!DOCTYPE html>"),
        ("status_zero", 200, '"status": 0'),
        ("empty", 200, ""),
        ("redirect", 307, ""),
    ],
)
def test_a_faulty_answer_has_its_status_and_body(api, simulator, kind, status, body):
    answer = _hit(api, simulator, kind=kind)
    assert answer.status_code == status
    assert body in answer.text
    assert bool(answer.content) == bool(body)
    assert simulator.answers == {str(status) if kind == "status" else kind: 1}


@pytest.mark.parametrize("kind", ["status", "html", "status_zero", "empty", "redirect"])
@pytest.mark.parametrize(("acts", "left"), [(True, "new"), (False, "old")])
def test_a_faulty_answer_comes_with_or_without_acting(api, simulator, kind, acts, left):
    _hit(api, simulator, kind=kind, acts=acts)
    assert simulator.projects["p1"].authorization == left


@pytest.mark.parametrize("kind", ["status", "html", "empty", "redirect"])
def test_the_status_of_a_fault_can_be_chosen(api, simulator, kind):
    assert _hit(api, simulator, kind=kind, status=308).status_code == 308


@pytest.mark.parametrize("retry_after", ["2", "Wed, 21 Oct 2026 07:28:00 GMT"])
def test_retry_after_is_sent_as_given(api, simulator, retry_after):
    answer = _hit(api, simulator, kind="status", status=429, retry_after=retry_after)
    assert answer.headers["Retry-After"] == retry_after


def test_a_fault_without_retry_after_sends_none(api, simulator):
    assert "Retry-After" not in _hit(api, simulator, kind="status", status=429).headers


def test_a_redirect_that_is_followed_shows_in_the_counters(api, simulator):
    simulator.add_fault(Fault(kind="redirect", times=1))
    api.get(follow_redirects=True)
    assert simulator.answers == {"redirect": 1, "404": 1}


@pytest.mark.parametrize(("kind", "left"), [("reset_before", "old"), ("reset_after", "new")])
def test_a_reset_comes_before_or_after_acting(api, simulator, kind, left):
    with pytest.raises(httpx.ReadError) as reset:
        _hit(api, simulator, kind=kind)
    assert "reset by peer" in str(reset.value)
    project = simulator.projects["p1"]
    assert project.authorization == left
    assert project.received == [{"authorization": "new"}]
    assert simulator.answers == {kind: 1}


@pytest.mark.parametrize("kind", ["truncated", "garbage"])
@pytest.mark.parametrize("acts", [True, False])
def test_an_unreadable_answer_comes_with_or_without_acting(api, simulator, kind, acts):
    with pytest.raises(httpx.RemoteProtocolError):
        _hit(api, simulator, kind=kind, acts=acts)
    assert simulator.projects["p1"].authorization == ("new" if acts else "old")
    assert simulator.answers == {kind: 1}


def test_a_reset_before_acting_never_acts(api, simulator):
    with pytest.raises(httpx.ReadError):
        _hit(api, simulator, kind="reset_before", acts=True)
    assert simulator.projects["p1"].authorization == "old"


def test_a_truncated_answer_is_the_beginning_of_the_real_one(api, simulator):
    simulator.add_fault(Fault(kind="truncated", acts=True))
    url = f"{api.url}/jelouapi/v1/external-support/p1"
    with api.http.stream("GET", url, headers=KEY) as answer:
        received = next(answer.iter_raw())
    assert received.startswith(b'{"id": "int_1"')
    assert len(received) < int(answer.headers["Content-Length"])


def test_a_delayed_request_is_late_and_carried_out(api, simulator):
    start = time.monotonic()
    answer = _hit(api, simulator, kind="delay", delay_seconds=0.05)
    assert time.monotonic() - start >= 0.05
    assert answer.json()["brainId"] == "p1"
    assert simulator.projects["p1"].authorization == "new"


def test_other_kinds_can_be_late_too(api, simulator):
    start = time.monotonic()
    assert _hit(api, simulator, kind="status", delay_seconds=0.05).status_code == 503
    assert time.monotonic() - start >= 0.05


def test_a_delay_without_a_length_is_refused():
    with pytest.raises(ValidationError, match="delay_seconds"):
        Fault(kind="delay")


@pytest.mark.parametrize("style", ["html", "echo"])
def test_an_error_status_on_demand_has_the_chosen_error_body(http, style):
    with switched(http, error_body=style) as (simulator, api):
        answer = _hit(api, simulator, kind="status")
    assert (("<html>" in answer.text), ("demo-key" in answer.text)) == (style == "html", style == "echo")


def test_a_fault_hits_only_the_method_and_project_it_names(api, simulator):
    simulator.add_project("p2")
    simulator.add_fault(Fault(kind="status", method="PATCH", project_id="p2"))
    body = {"authorization": "new"}
    answers = [api.get("p2"), api.patch(body, "p1"), api.patch(body, "p2")]
    assert [answer.status_code for answer in answers] == [200, 200, 503]


def test_a_fault_is_used_up_and_the_next_one_follows(api, simulator):
    simulator.add_fault(Fault(kind="status", times=2))
    simulator.add_fault(Fault(kind="status", status=429, times=1))
    assert [api.get().status_code for _ in range(4)] == [503, 503, 429, 200]
    assert simulator.faults == []


def test_a_fault_without_times_lasts(api, simulator):
    simulator.add_fault(Fault(kind="status"))
    assert [api.get().status_code for _ in range(3)] == [503] * 3


def _hits(seed: int) -> list[bool]:
    simulator = Simulator(seed=seed)
    simulator.add_fault(Fault(kind="status", rate=0.25))
    return [bool(simulator.next_fault("GET", "p1")) for _ in range(1000)]


def test_a_rate_hits_its_share_and_repeats_with_the_seed():
    assert 200 < sum(_hits(seed=1)) < 300
    assert _hits(seed=1) == _hits(seed=1) != _hits(seed=2)


# Deliveries


@pytest.mark.parametrize(
    ("auth_type", "credential"),
    [("bearer", "s3cret"), ("api_key", "s3cret"), ("basic", "user:pass:word"), ("no_auth", None)],
)
async def test_a_delivery_with_the_credential_the_receiver_knows_is_accepted(api, simulator, auth_type, credential):
    simulator.add_project("p2", auth_type=auth_type, authorization=credential)
    assert await simulator.deliver("p2")
    assert simulator.receivers["p2"].deliveries == {"accepted": 1}


@pytest.mark.parametrize("auth_type", ["bearer", "api_key", "basic", "no_auth"])
async def test_a_delivery_with_another_credential_is_refused(api, simulator, auth_type):
    simulator.add_project("p2", auth_type=auth_type, authorization="user:old")
    receiver = simulator.receivers["p2"]
    receiver.accepts, receiver.checks = {"user:new"}, True
    assert not await simulator.deliver("p2")
    assert receiver.deliveries == {"refused": 1}


async def test_a_receiver_that_does_not_check_takes_anything(api, simulator):
    simulator.receivers["p1"].accepts.clear()
    assert not await simulator.deliver("p1")
    simulator.receivers["p1"].checks = False
    assert await simulator.deliver("p1")


@pytest.mark.parametrize(
    ("encoded_by", "stored", "accepted"),
    [
        ("jelou", "user:password", True),
        ("jelou", "dXNlcjpwYXNzd29yZA==", False),
        ("caller", "user:password", False),
        ("caller", "dXNlcjpwYXNzd29yZA==", True),
    ],
)
async def test_a_basic_credential_is_encoded_by_the_chosen_side(http, encoded_by, stored, accepted):
    with switched(http, basic_encoded_by=encoded_by) as (simulator, _):
        simulator.add_project("p2", auth_type="basic", authorization=stored)
        simulator.receivers["p2"].accepts = {"user:password"}
        assert await simulator.deliver("p2") == accepted


@pytest.mark.parametrize(
    ("auth_type", "stored", "headers"),
    [
        ("bearer", "s3cret", {"Authorization": "Bearer s3cret"}),
        ("api_key", "s3cret", {"X-API-Key": "s3cret"}),
        ("basic", "user:password", {"Authorization": "Basic dXNlcjpwYXNzd29yZA=="}),
        ("no_auth", "kept", {}),
        ("bearer", None, {}),
    ],
)
def test_each_auth_type_has_its_header(auth_type, stored, headers):
    assert credential_header(auth_type, stored, "jelou") == headers


async def test_a_delivery_follows_the_patch(api, simulator):
    api.patch({"authorization": "new"})
    assert not await simulator.deliver("p1")
    simulator.receivers["p1"].accepts.add("new")
    assert await simulator.deliver("p1")


@pytest.mark.parametrize(
    ("webhook_url", "credential"),
    [("http://127.0.0.1:1/hook", "old"), (None, "line\r\nbreak")],
    ids=["nobody-listens", "no-header-can-hold-it"],
)
async def test_a_delivery_that_cannot_be_made_is_not_accepted(api, simulator, webhook_url, credential):
    simulator.add_project("p2", webhook_url, authorization=credential)
    assert not await simulator.deliver("p2")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Authorization": "Bearer old"}, 200),
        ({"authorization": "bearer old"}, 200),
        ({"x-api-key": "old"}, 200),
        ({"Authorization": "Basic b2xk"}, 200),
        ({"Authorization": "Digest b2xk"}, 401),
        ({"Authorization": "Bearer random"}, 401),
        ({}, 401),
    ],
)
def test_anybody_may_ask_a_receiver_and_it_checks(api, simulator, headers, status):
    assert api.http.post(simulator.receiver_url("p1"), headers=headers).status_code == status


def test_a_receiver_may_accept_a_whole_header_value(api, simulator):
    simulator.receivers["p1"].accepts = {"Token old"}
    answer = api.http.post(simulator.receiver_url("p1"), headers={"Authorization": "Token old"})
    assert answer.status_code == 200


def test_an_empty_credential_does_not_open_a_receiver(api, simulator):
    simulator.receivers["p1"].accepts = {""}
    assert api.http.post(simulator.receiver_url("p1")).status_code == 401


def test_a_receiver_that_does_not_exist_is_not_found(api, simulator):
    assert api.http.post(simulator.receiver_url("nobody")).status_code == 404


def test_an_event_is_signed_over_its_exact_bytes_with_the_secret_as_text():
    body = message_event("ñ", 1)
    expected = hmac.new(b"00ff", body, hashlib.sha256).hexdigest()
    assert signature(body, "00ff") == f"sha256={expected}"
    assert json.loads(body)["project_id"] == "ñ"


class Webhook(asyncio.Protocol):
    """A customer's server of another make: keeps what arrives."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.arrived = b""

    def connection_made(self, transport) -> None:
        self.transport = transport

    def data_received(self, data) -> None:
        self.arrived += data
        if self.arrived.endswith(b"}}}"):
            self.transport.write(self.answer)
            self.transport.close()


@asynccontextmanager
async def webhook_answering(answer: bytes) -> AsyncIterator[tuple[Webhook, str]]:
    webhook = Webhook(answer)
    server = await asyncio.get_running_loop().create_server(lambda: webhook, "127.0.0.1", 0)
    async with server:
        yield webhook, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook?a=1"


async def test_a_delivery_carries_the_signature_and_the_credential_to_any_webhook():
    simulator = Simulator()
    async with webhook_answering(b"HTTP/1.1 204 No Content\r\n\r\n") as (webhook, url):
        project = simulator.add_project("p1", url, "api_key", "s3cret")
        assert await simulator.deliver("p1")
    head, _, body = webhook.arrived.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /hook?a=1 ")
    assert b"X-API-Key: s3cret" in head
    assert f"X-Jelou-Signature: {signature(body, project.signing_secret)}".encode() in head


async def test_a_delivery_does_not_follow_a_redirect(api, simulator):
    simulator.receivers["p1"].checks = False
    target = simulator.receiver_url("p1")
    answer = f"HTTP/1.1 307 Moved\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n".encode()
    async with webhook_answering(answer) as (_, url):
        simulator.projects["p1"].webhook_url = url
        assert not await simulator.deliver("p1")
    assert simulator.receivers["p1"].deliveries == {}


# Control over HTTP


def test_the_front_page_lists_every_endpoint(api):
    page = api.http.get(api.url)
    assert page.headers["Content-Type"].startswith("text/plain")
    for path in ("/external-support/", "/secret/regenerate", "/receivers/", "/simulator/state"):
        assert path in page.text
    for path in ("projects", "faults", "receivers", "deliver"):
        assert f"/simulator/{path}" in page.text


def test_the_state_can_be_read_from_another_process(api, simulator):
    simulator.add_fault(Fault(kind="status", method="DELETE", retry_after="1"))
    api.patch({"authorization": "new"}, headers={**KEY, "User-Agent": "someone/1"})
    state = api.http.get(f"{api.url}/simulator/state").json()
    assert state["baseUrl"] == api.url
    assert state["switches"] == Switches().model_dump()
    assert state["projects"]["p1"]["authorization"] == "new"
    assert state["projects"]["p1"]["received"] == [{"authorization": "new"}]
    assert state["projects"]["p1"]["patches"][0]["body"] == {"authorization": "new"}
    assert datetime.fromisoformat(state["projects"]["p1"]["patches"][0]["at"]) <= datetime.now(UTC)
    assert state["receivers"]["p1"] == {"accepts": ["old"], "checks": True, "deliveries": {}}
    assert state["faults"][0]["retryAfter"] == "1"
    assert (state["requestsByMethod"], state["answers"]) == ({"PATCH": 1}, {"200": 1})
    assert state["userAgents"] == ["someone/1"]


def test_a_project_can_be_added_over_http(api, simulator):
    body = {"projectId": "p2", "authType": "basic", "authorization": "user:password"}
    added = api.http.post(f"{api.url}/simulator/projects", json=body).json()
    assert added["webhookUrl"] == f"{api.url}/receivers/p2"
    assert simulator.projects["p2"].authorization == "user:password"
    assert simulator.receivers["p2"].accepts == {"user:password"}


def test_faults_can_be_added_and_cleared_over_http(api, simulator):
    body = {"kind": "status", "status": 429, "retryAfter": "1", "projectId": "p1"}
    assert api.http.post(f"{api.url}/simulator/faults", json=body).status_code == 200
    assert simulator.faults == [Fault(kind="status", status=429, retry_after="1", project_id="p1")]
    assert api.http.delete(f"{api.url}/simulator/faults").status_code == 200
    assert simulator.faults == []


def test_a_receiver_can_be_set_over_http_and_keeps_its_counters(api, simulator):
    simulator.receivers["p1"].deliveries["accepted"] = 3
    url = f"{api.url}/simulator/receivers/p1"
    shown = api.http.put(url, json={"accepts": ["new", "old"], "checks": False}).json()
    assert shown == {"accepts": ["new", "old"], "checks": False, "deliveries": {"accepted": 3}}
    assert simulator.receivers["p1"].accepts == {"new", "old"}


def test_a_receiver_can_be_made_over_http(api, simulator):
    api.http.put(f"{api.url}/simulator/receivers/{quote('a/b', safe='')}", json={"accepts": ["new"]})
    assert simulator.receivers["a/b"].checks


def test_a_delivery_can_be_asked_for_over_http(api, simulator):
    url = f"{api.url}/simulator/deliver/p1"
    assert api.http.post(url).json() == {"delivered": True}
    simulator.receivers["p1"].accepts.clear()
    assert api.http.post(url).json() == {"delivered": False}
    assert api.http.post(f"{api.url}/simulator/deliver/nobody").status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "content", "field"),
    [
        ("POST", "faults", '{"kind": "fire"}', "kind"),
        ("POST", "faults", '{"kind": "status", "colour": 1}', "colour"),
        ("POST", "projects", "{}", "projectId"),
        ("PUT", "receivers/p1", '{"accepts": 1}', "accepts"),
    ],
)
def test_a_wrong_control_body_is_refused_by_field(api, method, path, content, field):
    answer = api.http.request(method, f"{api.url}/simulator/{path}", content=content)
    assert answer.status_code == 400
    assert [fault["loc"] for fault in answer.json()] == [[field]]
    assert "input" not in answer.json()[0]


def test_control_and_receivers_are_neither_counted_nor_faulty(api, simulator):
    simulator.add_fault(Fault(kind="status"))
    for url in (api.url, f"{api.url}/simulator/state"):
        assert api.http.get(url).status_code == 200
    api.http.post(simulator.receiver_url("p1"))
    assert simulator.requests_by_method == {}


# Starting and stopping


def test_a_restart_keeps_the_state_and_moves_its_own_webhooks(simulator):
    simulator.add_project("p2", "https://x.example/hook")
    with running(simulator) as first:
        assert simulator.projects["p1"].webhook_url == f"{first}/receivers/p1"
    with running(simulator) as second:
        assert simulator.projects["p1"].webhook_url == f"{second}/receivers/p1"
    assert simulator.projects["p2"].webhook_url == "https://x.example/hook"


def test_a_pending_delay_does_not_hold_up_the_end(simulator, http):
    simulator.add_fault(Fault(kind="delay", delay_seconds=30))
    start = time.monotonic()
    with running(simulator) as url, pytest.raises(httpx.ReadTimeout):
        Api(http, url).get(timeout=0.05)
    assert time.monotonic() - start < 5
    assert simulator.requests_by_method == {"GET": 1}


def test_a_port_in_use_is_reported_where_it_was_asked_for(api):
    port = int(api.url.rpartition(":")[2])
    with pytest.raises(OSError, match="in use"), running(Simulator(), port=port):
        pass


async def test_it_listens_in_a_running_loop_too(simulator):
    async with listening(simulator) as url:
        assert url == simulator.base_url
        assert await simulator.deliver("p1")
    assert not await simulator.deliver("p1")


async def test_serve_runs_until_it_is_cancelled(simulator):
    serving = asyncio.create_task(serve(simulator, "127.0.0.1", 0))
    async with asyncio.timeout(5):
        while simulator.base_url.endswith(":0"):  # noqa: ASYNC110 - serve tells nobody when it listens
            await asyncio.sleep(0)
    assert await simulator.deliver("p1")
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    assert not await simulator.deliver("p1")
