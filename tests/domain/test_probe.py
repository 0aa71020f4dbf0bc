"""Probes of receivers, over real sockets."""

import asyncio
import base64
import hashlib
import hmac
import itertools
import json
import logging
import ssl
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import SecretStr

from jelou_rotation.probe import Answer, Prober, Verdict, _Probe, judge
from jelou_rotation.row import AuthType
from jelou_rotation.simulator import Simulator, listening

CANARY = SecretStr("canary-credential")
SIGNING = SecretStr("canary-signing-secret")
BEARER = AuthType.BEARER


class Names:
    """A resolver that says what it was told to, the next time the next thing, and remembers what it was asked."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = []

    async def __call__(self, host):
        self.asked.append(host)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


class Receiver:
    """A receiver that answers as it was told to, and remembers what it got and how many were with it at once."""

    def __init__(self, status=200, headers=None):
        self.status = status
        self.headers = headers
        self.requests = []
        self.bodies = []
        self.at_once = self.most_at_once = 0

    async def handle(self, request):
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.requests.append(request)
        self.bodies.append(await request.read())
        answer = web.Response(status=await self.answer(), headers=self.headers)
        self.at_once -= 1
        return answer

    async def answer(self):
        return self.status


class Serving(Receiver):
    """Answers each credential with a status of its own."""

    def __init__(self, statuses, otherwise):
        super().__init__()
        self.statuses = statuses
        self.otherwise = otherwise

    async def answer(self):
        return self.statuses.get(self.requests[-1].headers["Authorization"].removeprefix("Bearer "), self.otherwise)


class Never(Receiver):
    """Does not answer."""

    async def answer(self):
        await asyncio.Event().wait()


class Meeting(Receiver):
    """Answers only when so many are with it at once."""

    def __init__(self, parties):
        super().__init__()
        self.all = asyncio.Barrier(parties)

    async def answer(self):
        await self.all.wait()
        return 200


class Peers(Receiver):
    """Remembers from where it was asked."""

    def __init__(self):
        super().__init__()
        self.peers = set()

    async def answer(self):
        self.peers.add(self.requests[-1].transport.get_extra_info("peername"))
        return 200


class Lingering(Receiver):
    """Gives others time to arrive before it answers."""

    async def answer(self):
        await asyncio.sleep(0.01)
        return 200


@asynccontextmanager
async def served(receiver, ssl_context=None):
    """The receiver behind a URL without its host: `:PORT/hook`."""
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", receiver.handle)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.05)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=ssl_context).start()
    try:
        yield f":{runner.addresses[0][1]}/hook"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def raw(serve):
    """A server that writes what it likes."""

    async def connected(reader, writer):
        try:
            await reader.readuntil(b"}")
            await serve(writer)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook"
    finally:
        server.close()


def trial(**options):
    return Prober(allow_private_hosts=True, **options)


async def tried(url, credential=CANARY, auth_type=BEARER, *, signing_secret=None, **options):
    async with trial(**options) as prober:
        return await prober.try_credential(url, auth_type, credential, project_id="acme", signing_secret=signing_secret)


# What is sent


@pytest.mark.parametrize(
    ("auth_type", "credential", "header"),
    [
        ("bearer", "t0ken", {"Authorization": "Bearer t0ken"}),
        ("api_key", "12|k:ey", {"X-API-Key": "12|k:ey"}),
        ("basic", "user:pass:wörd", {"Authorization": "Basic dXNlcjpwYXNzOnfDtnJk"}),
        ("basic", "dXNlcjpwYXNz", {"Authorization": "Basic dXNlcjpwYXNz"}),
        ("no_auth", "unused", {}),
    ],
)
async def test_the_credential_travels_in_the_header_of_its_auth_type(auth_type, credential, header):
    receiver = Receiver()
    async with served(receiver) as place:
        verdict = await tried(f"http://127.0.0.1{place}", SecretStr(credential), AuthType(auth_type))

    sent = {name: receiver.requests[0].headers.get(name) for name in ("Authorization", "X-API-Key")}
    assert sent == {"Authorization": None, "X-API-Key": None} | header
    assert verdict == Verdict(Answer.ACCEPTED, "the receiver answered 200", 200)


async def test_a_probe_is_marked_and_no_customers_message():
    receiver = Receiver()
    async with served(receiver) as place:
        await tried(f"http://127.0.0.1{place}?tenant=1")

    (request,), (body,) = receiver.requests, receiver.bodies
    event = json.loads(body)
    assert request.method == "POST"
    assert request.path_qs == "/hook?tenant=1"
    assert request.headers["X-Jelou-Rotation-Probe"] == "1"
    assert request.headers["User-Agent"].startswith("jelou-rotation/")
    assert request.headers["Content-Type"] == "application/json"
    assert event.keys() == {"event", "timestamp", "project_id"}
    assert event["event"] == "jelou-rotation.probe"
    assert event["project_id"] == "acme"
    assert event["timestamp"] > 1_700_000_000_000
    assert "X-Jelou-Signature" not in request.headers


async def test_the_signature_holds_for_the_exact_bytes_and_for_jelous_sample_that_writes_them_again():
    receiver = Receiver()
    async with served(receiver) as place, trial() as prober:
        await prober.try_credential(
            f"http://127.0.0.1{place}", BEARER, CANARY, project_id='ñandú "1"', signing_secret=SIGNING
        )

    (request,), (body,) = receiver.requests, receiver.bodies
    again = json.dumps(json.loads(body), separators=(",", ":"), ensure_ascii=False).encode()
    digest = hmac.new(b"canary-signing-secret", body, hashlib.sha256).hexdigest()
    assert request.headers["X-Jelou-Signature"] == f"sha256={digest}"
    assert again == body


@pytest.mark.parametrize("credential", ["canary\r\nX-Evil: 1", "canary\n", "ñ", "canary\u200b"], ids=ascii)
async def test_a_credential_that_no_header_can_hold_is_not_sent(credential):
    receiver = Receiver()
    async with served(receiver) as place:
        verdict = await tried(f"http://127.0.0.1{place}", SecretStr(credential))

    assert verdict == Verdict(
        Answer.UNREACHABLE, "not probed: the credential holds characters that cannot travel in a header"
    )
    assert not receiver.requests


# What an answer means


@pytest.mark.parametrize(
    ("status", "unsigned", "signed"),
    [
        (200, "accepted", "accepted"),
        (202, "accepted", "accepted"),
        (204, "accepted", "accepted"),
        (401, "refused", "refused"),
        (403, "inconclusive", "refused"),
        (400, "inconclusive", "inconclusive"),
        (404, "inconclusive", "inconclusive"),
        (407, "inconclusive", "inconclusive"),
        (422, "inconclusive", "inconclusive"),
        (429, "inconclusive", "inconclusive"),
        (302, "inconclusive", "inconclusive"),
        (500, "inconclusive", "inconclusive"),
        (503, "inconclusive", "inconclusive"),
    ],
)
async def test_a_status_means_what_the_table_says(status, unsigned, signed):
    async with served(Receiver(status)) as place:
        without = await tried(f"http://127.0.0.1{place}")
        with_signature = await tried(f"http://127.0.0.1{place}", signing_secret=SIGNING)

    assert (without.answer, with_signature.answer) == (unsigned, signed)
    assert without.status == with_signature.status == status
    assert str(status) in without.reason


@pytest.mark.parametrize("status", [401, 403])
async def test_an_unsigned_probe_says_that_its_missing_signature_may_be_the_cause(status):
    async with served(Receiver(status)) as place:
        without = await tried(f"http://127.0.0.1{place}")
        with_signature = await tried(f"http://127.0.0.1{place}", signing_secret=SIGNING)

    assert without.reason == f"the receiver answered {status}; the probe was not signed, which it may have refused"
    assert with_signature.reason == f"the receiver answered {status}"


@pytest.mark.parametrize("auth_type", ["bearer", "api_key", "basic"])
async def test_a_receiver_that_checks_is_told_from_one_that_does_not(auth_type):
    simulator = Simulator()
    simulator.add_project("strict", auth_type=auth_type, authorization="user:s3cret")
    simulator.add_project("lax", auth_type="no_auth", authorization=None)
    async with listening(simulator), trial() as prober:
        strict, lax = (simulator.receiver_url(each) for each in ("strict", "lax"))
        known = await prober.try_credential(strict, AuthType(auth_type), SecretStr("user:s3cret"), project_id="strict")

        assert known.answer is Answer.ACCEPTED
        assert (await prober.checks(strict, AuthType(auth_type), project_id="strict")).answer is Answer.REFUSED
        assert (await prober.checks(lax, AuthType(auth_type), project_id="lax")).answer is Answer.ACCEPTED


async def test_a_random_credential_is_of_the_same_form_and_new_each_run():
    receiver = Receiver()
    async with served(receiver) as place:
        for auth_type in ("bearer", "api_key", "basic", "bearer"):
            async with trial() as prober:
                await prober.checks(f"http://127.0.0.1{place}", AuthType(auth_type), project_id="acme")

    first, key, basic, second = (request.headers for request in receiver.requests)
    assert first["Authorization"].startswith("Bearer ")
    assert len(first["Authorization"]) >= 50
    assert len(key["X-API-Key"]) >= 43
    assert basic["Authorization"].startswith("Basic ")
    assert first["Authorization"] != second["Authorization"]


async def test_with_no_auth_there_is_nothing_to_check_and_nothing_is_sent():
    receiver = Receiver()
    async with served(receiver) as place, trial() as prober:
        verdict = await prober.checks(f"http://127.0.0.1{place}", AuthType.NO_AUTH, project_id="acme")

    assert verdict.answer is Answer.INCONCLUSIVE
    assert not receiver.requests


@pytest.mark.parametrize("signing_secret", [None, SIGNING], ids=["unsigned", "signed"])
@pytest.mark.parametrize(
    ("new", "random", "judged_new", "judged_random"),
    [
        pytest.param(200, 401, "accepted", "refused", id="the usual receiver"),
        pytest.param(200, 403, "accepted", "refused", id="403 beside success is about the credential"),
        pytest.param(200, 404, "accepted", "refused", id="hides behind 404"),
        pytest.param(200, 200, "accepted", "accepted", id="does not check"),
        pytest.param(422, 401, "accepted", "refused", id="does not understand the body"),
        pytest.param(404, 403, "accepted", "refused", id="does not know the event"),
        pytest.param(400, 400, "inconclusive", "inconclusive", id="looks at the body first"),
        pytest.param(401, 401, "refused", "refused", id="knows neither"),
        pytest.param(401, 422, "refused", "accepted", id="knows the wrong one"),
        pytest.param(429, 401, "inconclusive", "refused", id="429 says nothing"),
        pytest.param(407, 401, "inconclusive", "refused", id="a proxy's 407 says nothing"),
        pytest.param(408, 401, "inconclusive", "refused", id="408 says nothing"),
        pytest.param(425, 401, "inconclusive", "refused", id="425 says nothing"),
        pytest.param(500, 401, "inconclusive", "refused", id="500 says nothing"),
        pytest.param(302, 401, "inconclusive", "refused", id="a redirect says nothing"),
        pytest.param(200, 503, "accepted", "inconclusive", id="503 says nothing"),
    ],
)
async def test_the_difference_between_two_credentials_judges_both(
    new, random, judged_new, judged_random, signing_secret
):
    async with served(Serving({"canary-credential": new}, otherwise=random)) as place, trial() as prober:
        url = f"http://127.0.0.1{place}"
        one = await prober.try_credential(url, BEARER, CANARY, project_id="acme", signing_secret=signing_secret)
        two = await prober.checks(url, BEARER, project_id="acme", signing_secret=signing_secret)

    assert judge(one, two).answer == judged_new
    assert judge(two, one).answer == judged_random


def test_a_judgement_says_what_it_rests_on():
    random = Verdict(Answer.REFUSED, "the receiver answered 401", 401)
    new = Verdict(Answer.INCONCLUSIVE, "", 404)
    lost = Verdict(Answer.UNREACHABLE, "no connection to the receiver")

    assert judge(new, random).reason == "the receiver answered 404 to this credential and 401 to another one"
    assert judge(lost, random) is lost
    assert judge(new, lost) is new


# Trouble on the way


async def hang_up(writer):
    pass


async def talk_nonsense(writer):
    writer.write(b"\x16\x03\x01 canary nonsense\r\n\r\n")


async def dribble(writer):
    writer.write(b"HTTP/1.1 200 OK\r\n")
    for number in itertools.count():
        writer.write(f"X-{number}: 1\r\n".encode())
        await writer.drain()
        await asyncio.sleep(0.005)


@pytest.mark.parametrize(
    ("serve", "seconds", "reason"),
    [
        pytest.param(hang_up, 5, "no readable answer from the receiver (ServerDisconnectedError)", id="hangs up"),
        pytest.param(talk_nonsense, 5, "no readable answer from the receiver (HttpProcessingError)", id="not HTTP"),
        pytest.param(dribble, 0.1, "no answer from the receiver within 0.1 seconds", id="never ends its headers"),
    ],
)
async def test_no_answer_is_unreachable_and_says_which_trouble(serve, seconds, reason):
    async with raw(serve) as url:
        assert await tried(url, timeout_seconds=seconds) == Verdict(Answer.UNREACHABLE, reason)


async def test_a_slow_receiver_is_given_up_after_the_time_allowed():
    async with served(Never()) as place:
        verdict = await tried(f"http://127.0.0.1{place}", timeout_seconds=0.05)

    assert verdict == Verdict(Answer.UNREACHABLE, "no answer from the receiver within 0.05 seconds")


async def test_a_slow_resolver_is_given_up_after_the_time_allowed():
    async def never(host):
        await asyncio.Event().wait()

    verdict = await tried("https://panel.example/hook", timeout_seconds=0.05, look_up=never)

    assert verdict.reason == "no answer from the receiver within 0.05 seconds"


async def test_waiting_for_a_turn_does_not_use_up_the_time_of_a_probe():
    async with raw(dribble) as slow, served(Receiver()) as place, trial(timeout_seconds=0.25) as prober:
        verdicts = await asyncio.gather(
            *(
                prober.try_credential(url, BEARER, CANARY, project_id="acme")
                for url in (slow, f"http://127.0.0.1{place}")
            )
        )

    assert [verdict.answer for verdict in verdicts] == ["unreachable", "accepted"]


async def test_nobody_listening_is_no_connection():
    async with raw(hang_up) as url:
        pass

    assert await tried(url) == Verdict(Answer.UNREACHABLE, "no connection to the receiver")


@pytest.mark.parametrize("answer", [OSError("canary"), UnicodeError("canary"), []], ids=repr)
async def test_a_name_without_an_address_is_unreachable(answer):
    verdict = await tried("https://panel.example/hook", look_up=Names(answer))

    assert verdict == Verdict(Answer.UNREACHABLE, "not probed: the name of the host cannot be resolved")


async def test_a_redirect_is_not_followed():
    target = Receiver()
    async with served(target) as elsewhere:
        receiver = Receiver(307, {"Location": f"http://127.0.0.1{elsewhere}"})
        async with served(receiver) as place:
            verdict = await tried(f"http://127.0.0.1{place}")

    assert verdict.answer is Answer.INCONCLUSIVE
    assert not target.requests


async def test_the_body_of_an_answer_is_not_read():
    written = 0
    gave_up = asyncio.Event()

    async def flood(writer):
        nonlocal written
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000000\r\n\r\n")
        try:
            while True:
                writer.write(bytes(65536))
                await writer.drain()
                written += 65536
        finally:
            gave_up.set()

    async with raw(flood) as url:
        verdict = await tried(url)
        async with asyncio.timeout(5):
            await gave_up.wait()

    assert verdict.answer is Answer.ACCEPTED
    assert written < 50_000_000


async def test_cookies_are_not_kept():
    receiver = Receiver(headers={"Set-Cookie": "session=1; Path=/"})
    async with served(receiver) as place, trial(look_up=Names(["127.0.0.1"])) as prober:
        for _ in range(2):
            await prober.try_credential(f"http://panel.example{place}", BEARER, CANARY, project_id="acme")

    assert len(receiver.requests) == 2
    assert not any("Cookie" in request.headers for request in receiver.requests)


async def test_proxies_in_the_environment_are_not_used(monkeypatch):
    proxy = Receiver(status=502)
    async with served(proxy) as elsewhere, served(Receiver()) as place:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1{elsewhere}")
        verdict = await tried(f"http://panel.example{place}", look_up=Names(["127.0.0.1"]))

    assert verdict.answer is Answer.ACCEPTED
    assert not proxy.requests


# Where a probe may go

PRIVATE = "not probed: the host is not public (for trials: JELOU_ALLOW_PRIVATE_HOSTS)"


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["10.1.2.3"],
        ["169.254.169.254"],
        ["100.64.0.1"],
        ["0.0.0.0"],
        ["::1"],
        ["fd00::1"],
        ["fe80::1%eth0"],
        ["fec0::1"],
        ["::ffff:10.0.0.1"],
        ["2002:7f00:1::"],
        ["64:ff9b::10.0.0.1"],
        ["224.0.0.1"],
        ["::127.0.0.1"],
        ["64:ff9b:1::10.0.0.1"],
        ["93.184.215.14", "10.1.2.3"],
        ["10.1.2.3", "93.184.215.14"],
        ["2606:2800:21f:cb07::1", "93.184.215.14", "::1"],
    ],
    ids=",".join,
)
async def test_a_public_name_with_one_private_address_is_not_asked(addresses):
    async with Prober(look_up=Names(addresses)) as prober:
        verdict = await prober.try_credential("https://panel.example/hook", BEARER, CANARY, project_id="acme")

    assert verdict == Verdict(Answer.UNREACHABLE, PRIVATE)


@pytest.mark.parametrize(
    "host", ["localhost", "panel.internal", "127.0.0.1", "127.1", "0x7f000001", "2130706433", "[::1]", "[::ffff:a00:1]"]
)
async def test_a_private_host_is_not_asked_whatever_its_spelling(host):
    # A resolver that lies: the name or the literal alone is enough.
    async with Prober(look_up=Names(["93.184.215.14"])) as prober:
        verdict = await prober.try_credential(f"https://{host}/hook", BEARER, CANARY, project_id="acme")

    assert verdict == Verdict(Answer.UNREACHABLE, PRIVATE)


@pytest.mark.parametrize(
    "address",
    ["93.184.215.14", "2606:2800:21f:cb07::1", "64:ff9b::93.184.215.14", "::ffff:93.184.215.14"],
)
async def test_a_public_address_is_asked(address):
    network = httpx.MockTransport(lambda _: httpx.Response(204))
    async with Prober(look_up=Names([address]), transport=network) as prober:
        verdict = await prober.try_credential("https://panel.example/hook", BEARER, CANARY, project_id="acme")

    assert verdict.answer is Answer.ACCEPTED


@pytest.mark.parametrize(
    ("url", "addresses"),
    [
        ("http://panel.example/hook", ["93.184.215.14"]),
        ("http://panel.example/hook", ["127.0.0.1", "93.184.215.14"]),
        ("ftp://panel.example/hook", ["127.0.0.1"]),
        ("https://user:canary@panel.example/hook", ["127.0.0.1"]),
        ("https:///hook", ["127.0.0.1"]),
        ("/hook", ["127.0.0.1"]),
        ("https://panel.example:canary/hook", ["127.0.0.1"]),
        ("https://xn--canary-0000000000000/hook", ["127.0.0.1"]),
        ("https://\0canary/hook", ["127.0.0.1"]),
    ],
)
async def test_an_address_that_is_not_https_or_makes_no_sense_is_not_asked(url, addresses):
    network = httpx.MockTransport(lambda _: pytest.fail("was asked"))
    verdict = await tried(url, look_up=Names(addresses), transport=network)

    assert verdict.answer is Answer.UNREACHABLE
    assert verdict.reason.startswith("not probed: ")
    assert "canary" not in verdict.reason


async def test_a_name_is_looked_up_once_and_its_later_addresses_are_never_used():
    names = Names(["127.0.0.1"], ["127.0.0.2"])
    receiver = Receiver()
    async with served(receiver) as place, trial(look_up=names) as prober:
        verdicts = [
            await prober.try_credential(f"http://panel.example{place}", BEARER, CANARY, project_id=project_id)
            for project_id in ("one", "two", "three")
        ]

    assert [verdict.answer for verdict in verdicts] == ["accepted"] * 3
    assert names.asked == ["panel.example"]
    assert {request.headers["Host"] for request in receiver.requests} == {f"panel.example{place.removesuffix('/hook')}"}


async def test_a_name_that_could_not_be_resolved_is_looked_up_again():
    names = Names(OSError(), ["127.0.0.1"])
    async with served(Receiver()) as place, trial(look_up=names) as prober:
        url = f"http://panel.example{place}"
        first = await prober.try_credential(url, BEARER, CANARY, project_id="acme")
        second = await prober.try_credential(url, BEARER, CANARY, project_id="acme")

    assert (first.answer, second.answer) == ("unreachable", "accepted")


async def test_without_a_resolver_of_its_own_it_asks_the_systems():
    async with served(Receiver()) as place:
        assert (await tried(f"http://localhost{place}")).answer is Answer.ACCEPTED


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A self-signed certificate for panel.example and its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "panel.example")])
    now = datetime.now(UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("panel.example")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "panel.pem"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + built.public_bytes(serialization.Encoding.PEM)
    )
    return path


@pytest.mark.parametrize(
    ("host", "is_trusted", "reason"),
    [
        pytest.param("panel.example", True, "the receiver answered 200", id="trusted"),
        pytest.param(
            "panel.example",
            False,
            "no secure connection to the receiver (ClientConnectorCertificateError)",
            id="nobody vouches for it",
        ),
        pytest.param(
            "other.example",
            True,
            "no secure connection to the receiver (ClientConnectorCertificateError)",
            id="another name's",
        ),
    ],
)
async def test_the_certificate_must_be_trusted_and_of_the_name_in_the_url(
    host, is_trusted, reason, certificate, monkeypatch
):
    if is_trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    receiver = Receiver()
    async with served(receiver, context) as place:
        verdict = await tried(f"https://{host}{place}", look_up=Names(["127.0.0.1"]))

    assert verdict.reason == reason
    assert len(receiver.requests) == (reason == "the receiver answered 200")


# How often


async def test_a_host_gets_one_probe_at_a_time():
    receiver = Lingering()
    async with served(receiver) as place, trial() as prober:
        await asyncio.gather(
            *(
                prober.try_credential(f"http://127.0.0.1{place}/{number}", BEARER, CANARY, project_id="acme")
                for number in range(5)
            )
        )

    assert len(receiver.requests) == 5
    assert receiver.most_at_once == 1


async def test_different_hosts_are_probed_at_once():
    # More than aiohttp's pool allows by default.
    hosts = [f"panel{number}.example" for number in range(101)]
    async with served(Meeting(len(hosts))) as place, trial(look_up=Names(["127.0.0.1"])) as prober:
        verdicts = await asyncio.gather(
            *(prober.try_credential(f"http://{host}{place}", BEARER, CANARY, project_id="acme") for host in hosts)
        )

    assert {verdict.answer for verdict in verdicts} == {Answer.ACCEPTED}


async def test_each_probe_has_a_connection_of_its_own():
    receiver = Peers()
    async with served(receiver) as place, trial() as prober:
        for _ in range(3):
            await prober.try_credential(f"http://127.0.0.1{place}", BEARER, CANARY, project_id="acme")

    assert len(receiver.peers) == 3


async def test_a_refused_credential_is_not_sent_there_again():
    receiver = Receiver(401)
    async with served(receiver) as place, trial() as prober:
        url = f"http://127.0.0.1{place}"
        first = await prober.try_credential(url, BEARER, CANARY, project_id="acme")
        receiver.status = 200
        second = await prober.try_credential(url, BEARER, CANARY, project_id="acme")
        random = [await prober.checks(url, BEARER, project_id="acme") for _ in range(2)]

    assert second is first
    assert first.answer is Answer.REFUSED
    assert [verdict.answer for verdict in random] == ["accepted", "accepted"]
    assert len(receiver.requests) == 3


async def test_a_random_credential_that_was_refused_is_not_sent_there_again():
    receiver = Receiver(401)
    async with served(receiver) as place, trial() as prober:
        verdicts = [await prober.checks(f"http://127.0.0.1{place}", BEARER, project_id="acme") for _ in range(2)]

    assert [verdict.answer for verdict in verdicts] == ["refused", "refused"]
    assert len(receiver.requests) == 1


@pytest.mark.parametrize(
    "other",
    [
        {"project_id": "other"},
        {"signing_secret": SIGNING},
        {"credential": SecretStr("other")},
        {"auth_type": AuthType.API_KEY},
        {"query": "?other"},
    ],
    ids=lambda other: next(iter(other)),
)
async def test_what_differs_from_a_refused_attempt_is_asked(other):
    receiver = Receiver(401)
    async with served(receiver) as place, trial() as prober:
        for change in ({}, other):
            given = {"query": "", "auth_type": BEARER, "credential": CANARY, "project_id": "acme"} | change
            await prober.try_credential(f"http://127.0.0.1{place}{given.pop('query')}", **given)

    assert len(receiver.requests) == 2


async def test_one_project_is_asked_at_most_20_times_at_one_url():
    receiver = Receiver()
    async with served(receiver) as place, trial() as prober:
        url = f"http://127.0.0.1{place}"
        verdicts = [await prober.try_credential(url, BEARER, CANARY, project_id="acme") for _ in range(21)]
        other = await prober.try_credential(url, BEARER, CANARY, project_id="other")

    assert [verdict.answer for verdict in verdicts] == ["accepted"] * 20 + ["unreachable"]
    assert verdicts[-1].reason == "not probed: asked 20 times already in this run"
    assert other.answer is Answer.ACCEPTED


# Secrets


def breaks(request):
    raise RuntimeError(request.headers["Authorization"])


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"look_up": Names(["127.0.0.1"])}, id="an answer"),
        pytest.param({"look_up": Names(OSError("canary"))}, id="no address"),
        pytest.param(
            {"look_up": Names(["127.0.0.1"]), "transport": httpx.MockTransport(breaks)}, id="a driver's error"
        ),
    ],
)
async def test_no_secret_is_shown_or_kept(options, caplog):
    caplog.set_level(logging.DEBUG)
    receiver = Receiver(401, {"WWW-Authenticate": "canary"})
    shown = []
    async with served(receiver) as place, trial(**options) as prober:
        for auth_type in AuthType:
            verdict = await prober.try_credential(
                f"http://panel.example{place}?key=canary",
                auth_type,
                SecretStr("canary:value"),
                project_id="acme",
                signing_secret=SIGNING,
            )
            shown += [repr(verdict), repr(prober), repr(prober._refused)]

    seen = "".join([*shown, caplog.text])
    assert "canary" not in seen
    assert base64.b64encode(b"canary:value").decode() not in seen


async def test_what_remembers_a_refusal_tells_nothing_to_who_knows_the_credential():
    remembered = []
    async with served(Receiver(401)) as place:
        for _ in range(2):
            async with trial() as prober:
                await prober.try_credential(f"http://127.0.0.1{place}", BEARER, CANARY, project_id="acme")
            remembered += prober._refused

    assert len(set(remembered)) == 2


def test_what_is_about_to_be_sent_shows_nothing():
    probe = _Probe(httpx.URL("https://panel.example"), "acme", {"X-API-Key": "canary"}, SIGNING)

    assert "canary" not in f"{probe} {probe!r}"


async def test_nonsense_that_repeats_the_request_is_not_repeated():
    async def echo(writer):
        writer.write(b"canary-credential canary-signing-secret\r\n\r\n")

    async with raw(echo) as url:
        verdict = await tried(url, signing_secret=SIGNING)

    assert verdict.answer is Answer.UNREACHABLE
    assert "canary" not in repr(verdict)
