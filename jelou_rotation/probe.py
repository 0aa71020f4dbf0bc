"""
Asks a customer's receiver whether it accepts a credential, by a marked and harmless POST as Jelou would send it.

A probe proves what the receiver accepts, never what Jelou has stored. Source: reference page HMAC.
"""

import asyncio
import base64
import hashlib
import hmac
import json
import secrets
import socket
import ssl
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Self

import aiohttp
import httpx
from aiohttp.abc import AbstractResolver, ResolveResult
from httpx_aiohttp import AiohttpTransport
from pydantic import SecretStr

from jelou_rotation.addresses import is_private
from jelou_rotation.gateway import USER_AGENT
from jelou_rotation.generation import Policy, generate
from jelou_rotation.row import AuthType

MARK = "X-Jelou-Rotation-Probe"

# A life of a row takes about six; a receiver that locks out after many is not worth the risk.
_MOST_REQUESTS = 20
# Thousands of rows may share a host, and one that is down would keep each of them waiting.
_MOST_SILENCES = 6
_DENIED = {401, 403}
# The answer of a proxy or of a receiver that is busy: it would say the same to any credential.
_NOT_ABOUT_THE_CREDENTIAL = {407, 408, 425, 429}

LookUp = Callable[[str], Awaitable[Sequence[str]]]
"""All addresses of a host name. Raises OSError when there are none."""


class Answer(StrEnum):
    """What the receiver makes of a credential; `unreachable` when it could not be asked or gave no HTTP answer."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    UNREACHABLE = "unreachable"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, slots=True)
class Verdict:
    """`reason` is a sentence that holds no body, header or credential; `status` the HTTP status, if one came."""

    answer: Answer
    reason: str
    status: int | None = None


def judge(tried: Verdict, beside: Verdict) -> Verdict:
    """
    What `tried` says of its credential once another one was tried in the same way (project, signing secret).

    Only the credential differed, so the one that came further was accepted and the other one was refused:

    =========  ==================================================================
    furthest   2xx
    less far   other 4xx: past the credential, but the body was not understood
    nowhere    401, 403
    =========  ==================================================================

    `tried` stays as it is when both came as far, or one says nothing: 407, 408, 425, 429, 3xx, 5xx, no answer.
    """
    came, other = _progress(tried.status), _progress(beside.status)
    if came is None or other is None or came == other:
        return tried
    answer = Answer.ACCEPTED if came > other else Answer.REFUSED
    reason = f"the receiver answered {tried.status} to this credential and {beside.status} to another one"
    return Verdict(answer, reason, tried.status)


class Prober:
    """
    Asks receivers for one run: `async with Prober(...) as prober`.

    A receiver is asked by `https://` at public addresses only; with `allow_private_hosts` also at private ones, and
    there by `http://` too. Its name is looked up once a run, and connections go to the addresses found then.
    Redirects and environment proxies are not followed, cookies not kept, the body of an answer not read.

    One host gets one probe at a time, one project at one URL at most 20, and a credential that was refused there is
    not sent again: the same verdict is returned.

    `timeout_seconds` bounds one probe from the look-up to the answer. `transport` and `look_up` replace the
    network, for tests.
    """

    def __init__(
        self,
        *,
        allow_private_hosts: bool = False,
        timeout_seconds: float = 10.0,
        transport: httpx.AsyncBaseTransport | None = None,
        look_up: LookUp | None = None,
    ) -> None:
        self._allow_private_hosts = allow_private_hosts
        self._timeout_seconds = timeout_seconds
        # The transport alone: a client would keep cookies, and log the URL of every request. Its own TLS trusts nobody
        # and is not used; that of the session, which takes a while to load, is made when something is to be probed.
        self._transport = transport or AiohttpTransport(
            verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), client=self._session
        )
        self._look_up = look_up or _look_up
        self._addresses: dict[str, Sequence[str]] = {}
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._requests: Counter[tuple[str, str]] = Counter()
        self._refused: dict[bytes, Verdict] = {}
        self._silent: Counter[str] = Counter()
        self._salt = secrets.token_bytes(32)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._transport.aclose()

    @cached_property
    def _random(self) -> Mapping[AuthType, SecretStr]:
        """One for the whole run, so that a receiver that refused it is not asked again."""
        policy = Policy(user="jelou-rotation-probe")
        return {each: generate(policy, each) for each in AuthType if each is not AuthType.NO_AUTH}

    async def try_credential(
        self,
        url: str,
        auth_type: AuthType,
        credential: SecretStr,
        *,
        project_id: str,
        signing_secret: SecretStr | None = None,
    ) -> Verdict:
        """
        Whether the receiver at `url` accepts this credential; with no_auth, a post without one.

        Trouble on the way is a verdict, not an error.

        ===================  ============  ==================================================================
        answer               verdict       why
        ===================  ============  ==================================================================
        2xx                  accepted
        401                  refused       also unsigned: better to stop a row in vain than to lose messages
        403, signed          refused       nothing else was left to refuse
        403, not signed      inconclusive  the missing signature may have been refused
        other 4xx            inconclusive  may come before or after the credential was looked at: see `judge`
        3xx, 5xx             inconclusive  somebody else may have answered
        none                 unreachable
        ===================  ============  ==================================================================
        """
        target = _parse(url)
        if target is None:
            return Verdict(Answer.UNREACHABLE, "not probed: the address cannot be read")
        probe = _Probe(target, project_id, credential_header(auth_type, credential), signing_secret)
        fingerprint = probe.fingerprint(self._salt)
        async with self._turns[probe.host]:
            if fingerprint in self._refused:
                return self._refused[fingerprint]
            verdict = await self._ask(probe)
            self._silent[target.host] = 0 if verdict.status else self._silent[target.host] + 1
            if verdict.answer is Answer.REFUSED:
                self._refused[fingerprint] = verdict
            return verdict

    async def checks(
        self, url: str, auth_type: AuthType, *, project_id: str, signing_secret: SecretStr | None = None
    ) -> Verdict:
        """Whether the receiver checks at all, by a random credential: refused when it does, accepted when not."""
        if auth_type is AuthType.NO_AUTH:
            return Verdict(Answer.INCONCLUSIVE, "not probed: with no_auth there is no credential to check")
        return await self.try_credential(
            url, auth_type, self._random[auth_type], project_id=project_id, signing_secret=signing_secret
        )

    async def _ask(self, probe: "_Probe") -> Verdict:
        try:
            async with asyncio.timeout(self._timeout_seconds):
                if obstacle := probe.fault() or await self._obstacle(probe):
                    return Verdict(Answer.UNREACHABLE, f"not probed: {obstacle}")
                self._requests[probe.place] += 1
                status = await self._post(probe.request())
        except TimeoutError:
            return Verdict(Answer.UNREACHABLE, f"no answer from the receiver within {self._timeout_seconds:g} seconds")
        except Exception as error:  # noqa: BLE001 - whatever broke, its text may hold a header
            return Verdict(Answer.UNREACHABLE, _trouble(error.__cause__ or error))
        return _verdict(status, is_signed=probe.signing_secret is not None)

    async def _obstacle(self, probe: "_Probe") -> str | None:
        """Why this receiver is not asked, or None."""
        if self._silent[probe.url.host] >= _MOST_SILENCES:
            return f"the host gave no answer {_MOST_SILENCES} times in a row in this run"
        if self._requests[probe.place] == _MOST_REQUESTS:
            return f"asked {_MOST_REQUESTS} times already in this run"
        addresses = await self._addresses_of(probe.host)
        if not addresses:
            return "the name of the host cannot be resolved"
        if any(map(is_private, [probe.host, *addresses])) and not self._allow_private_hosts:
            return "the host is not public (for trials: JELOU_ALLOW_PRIVATE_HOSTS)"
        if probe.url.scheme != "https" and not all(map(is_private, addresses)):
            return "expected an https:// address"
        return None

    async def _addresses_of(self, host: str) -> Sequence[str]:
        """Looked up once, so that a name that changes its address in between changes nothing."""
        if host not in self._addresses:
            try:
                self._addresses[host] = await self._look_up(host)
            except (OSError, UnicodeError):
                return ()
        return self._addresses[host]

    async def _post(self, request: httpx.Request) -> int:
        response = await self._transport.handle_async_request(request)
        await response.aclose()
        return response.status_code

    def _session(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            resolver=_Known(self._addresses),
            ssl=httpx.create_ssl_context(),
            # A kept connection may be dead by the next probe, and a POST on it would fail.
            force_close=True,
            # The caller decides how many are probed at once; waiting here would use up a probe's time.
            limit=0,
        )
        return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())


@dataclass(frozen=True, slots=True, repr=False)
class _Probe:
    """What one credential is tried with; without a repr, because it holds secrets."""

    url: httpx.URL
    project_id: str
    credential: Mapping[str, str]
    signing_secret: SecretStr | None

    @property
    def host(self) -> str:
        return self.url.raw_host.decode()

    @property
    def place(self) -> tuple[str, str]:
        return str(self.url), self.project_id

    def fault(self) -> str | None:
        if self.url.scheme not in {"https", "http"} or self.url.userinfo:
            return "expected an https:// address without a user or password"
        if not all(value.isascii() and value.isprintable() for value in self.credential.values()):
            return "the credential holds characters that cannot travel in a header"
        return None

    def fingerprint(self, salt: bytes) -> bytes:
        """Tells two attempts apart without keeping what was sent."""
        secret = self.signing_secret.get_secret_value() if self.signing_secret else None
        return hmac.digest(salt, repr((self.place, dict(self.credential), secret)).encode(), "sha256")

    def request(self) -> httpx.Request:
        body = _event(self.project_id)
        headers = {"Content-Type": "application/json", "User-Agent": USER_AGENT, MARK: "1", **self.credential}
        if self.signing_secret:
            digest = hmac.new(self.signing_secret.get_secret_value().encode(), body, hashlib.sha256).hexdigest()
            headers["X-Jelou-Signature"] = f"sha256={digest}"
        return httpx.Request("POST", self.url, headers=headers, content=body)


class _Known(AbstractResolver):
    """Gives aiohttp the addresses that were looked up and judged, and no others."""

    def __init__(self, addresses: Mapping[str, Sequence[str]]) -> None:
        self._addresses = addresses

    async def resolve(
        self,
        host: str,
        port: int = 0,
        family: socket.AddressFamily = socket.AF_UNSPEC,  # noqa: ARG002 - aiohttp's signature
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in self._addresses[host]
        ]

    async def close(self) -> None:
        pass


async def _look_up(host: str) -> list[str]:
    infos = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in infos]


def credential_header(auth_type: AuthType, credential: SecretStr) -> dict[str, str]:
    """
    The header in which Jelou presents a credential.

    Whether Jelou encodes a basic credential itself is not documented: one with a colon is taken for `user:password`
    and encoded here, one without for encoded already.
    """
    value = credential.get_secret_value()
    match auth_type:
        case AuthType.BEARER:
            return {"Authorization": f"Bearer {value}"}
        case AuthType.API_KEY:
            return {"X-API-Key": value}
        case AuthType.BASIC:
            encoded = base64.b64encode(value.encode()).decode() if ":" in value else value
            return {"Authorization": f"Basic {encoded}"}
        case AuthType.NO_AUTH:
            return {}


def _event(project_id: str) -> bytes:
    """No panel takes it for a customer's message: it has neither `event_type` nor an event that Jelou knows."""
    event = {"event": "jelou-rotation.probe", "timestamp": time.time_ns() // 1_000_000, "project_id": project_id}
    # As JSON.stringify writes it: Jelou's sample receiver checks the signature of what it parsed and wrote again.
    return json.dumps(event, separators=(",", ":"), ensure_ascii=False).encode()


def _verdict(status: int, *, is_signed: bool) -> Verdict:
    said = f"the receiver answered {status}"
    if 200 <= status < 300:
        return Verdict(Answer.ACCEPTED, said, status)
    if status not in _DENIED:
        return Verdict(Answer.INCONCLUSIVE, f"{said}, which says nothing of the credential", status)
    if is_signed:
        return Verdict(Answer.REFUSED, said, status)
    answer = Answer.REFUSED if status == 401 else Answer.INCONCLUSIVE
    return Verdict(answer, f"{said}; the probe was not signed, which it may have refused", status)


def _progress(status: int | None) -> int | None:
    """How far a probe came; None when the answer does not tell."""
    if status is None or status in _NOT_ABOUT_THE_CREDENTIAL:
        return None
    return 0 if status in _DENIED else {4: 1, 2: 2}.get(status // 100)


def _trouble(error: BaseException) -> str:
    # httpx-aiohttp has one class for a refused connection and a dropped one; aiohttp's own class tells them apart.
    if isinstance(error, aiohttp.ClientSSLError):
        return f"no secure connection to the receiver ({type(error).__name__})"
    if isinstance(error, aiohttp.ClientConnectorError):
        return "no connection to the receiver"
    return f"no readable answer from the receiver ({type(error).__name__})"


def _parse(url: str) -> httpx.URL | None:
    try:
        target = httpx.URL(url)
        return target if target.host else None
    except (httpx.InvalidURL, UnicodeError):
        # UnicodeError: a name that begins with xn-- and is none.
        return None
