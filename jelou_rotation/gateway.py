"""
The client of Jelou's external-support API: one resource, to create, read and change, and its signing secret.

Source: reference pages CREATE, GET, PATCH and REGEN.
"""

import asyncio
import json
import math
from base64 import b64encode
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any, Self
from urllib.parse import quote
from urllib.request import getproxies, proxy_bypass

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport
from pydantic import SecretStr

from jelou_rotation import __version__
from jelou_rotation.errors import (
    AccessDenied,
    Contradicted,
    Fault,
    InvalidRequest,
    KeyRefused,
    NoAnswer,
    NotFound,
    Passing,
    RowTrouble,
    ServerTrouble,
    SettingsError,
    Throttled,
    Unexpected,
    Unreachable,
)
from jelou_rotation.pacing import Pace, Turn

USER_AGENT = f"jelou-rotation/{__version__}"
_HEADERS = {"User-Agent": USER_AGENT, "Accept": "application/json"}

_BY_STATUS: dict[int, type[RowTrouble]] = {
    400: InvalidRequest,
    401: KeyRefused,
    403: AccessDenied,
    404: NotFound,
    408: ServerTrouble,
    409: InvalidRequest,
    422: InvalidRequest,
    425: ServerTrouble,
    429: Throttled,
}

# The only words of an answer that may be repeated: the documented codes (page APIINTRO) and our own field names.
_KNOWN_CODES = {
    "unauthorized",
    "forbidden_bot",
    "bot_not_found",
    "unprocessable_entity",
    "internal_server_error",
}
_KNOWN_FIELDS = ("webhookUrl", "authType", "authorization")

_MAX_ANSWER_BYTES = 1024 * 1024
# A longer pause than this is the operator's decision, not ours.
_MAX_PAUSE_SECONDS = 120.0
_MAX_PAUSES = 8
# When Jelou does not say how long; doubled each time, to 6.4 seconds.
_SHORTEST_PAUSE_SECONDS = 0.05
# Clocks that differ by no more are the same: the date in a header is cut to whole seconds.
_SAME_TIME = timedelta(seconds=2)


@dataclass(frozen=True, slots=True)
class Integration:
    """
    One project's integration as an answer of Jelou tells it.

    None means that the answer left the field out, never that the integration has no such value:
    the envelope shape has no `authType`, and no documented answer has the credential.
    """

    webhook_url: str | None = None
    auth_type: str | None = None
    updated_at: datetime | None = None

    @classmethod
    def parse(cls, body: Mapping[str, Any]) -> Self:
        """Reads the flat shape and the envelope; ignores everything it does not know."""
        fields = _fields(body)
        return cls(
            webhook_url=_text(fields.get("webhookUrl")),
            auth_type=_text(fields.get("authType")),
            updated_at=_moment(fields.get("updatedAt")),
        )


@dataclass(frozen=True, slots=True)
class Created:
    """A new integration, and the secret Jelou signs with: shown this once, None when the answer held none."""

    integration: Integration
    signing_secret: SecretStr | None


@dataclass(frozen=True, slots=True)
class ApiKey:
    """Prose of every endpoint page: `x-api-key`."""

    value: SecretStr

    def header(self) -> dict[str, str]:
        return {"x-api-key": self.value.get_secret_value()}


@dataclass(frozen=True, slots=True)
class ClientPair:
    """API explorer panel of the PATCH page: Basic with client id and secret."""

    client_id: SecretStr
    client_secret: SecretStr

    def header(self) -> dict[str, str]:
        return {"Authorization": _basic(self.client_id.get_secret_value(), self.client_secret.get_secret_value())}


Caller = ApiKey | ClientPair


class _Transport(AiohttpTransport):
    """aiohttp calls a POST without a body an octet-stream, which a server may refuse: only our own type is sent."""

    def get_client(self) -> aiohttp.ClientSession:
        session = super().get_client()
        connector = session.connector
        session.detach()
        # No cookies: what a gateway sets for one project is nothing to send with the next.
        return aiohttp.ClientSession(
            connector=connector, skip_auto_headers=["Content-Type"], cookie_jar=aiohttp.DummyCookieJar()
        )


class Gateway:
    """
    Jelou's gateway for one run: `async with Gateway(...) as gateway`.

    A request asked to pause (429, or 5xx with Retry-After) waits and is sent again here, because throttling is
    pacing, not failing; every other trouble is raised as a RowTrouble for the caller to decide on. A POST is sent
    again only after a 429, where Jelou did not act: a second one would replace a secret that is shown once.

    `base_url` includes the version prefix. `timeout_seconds` bounds each connect and each read, `requests_per_second`
    what is sent with any one key; None is as fast as Jelou takes it.
    `transport` replaces the network, for tests. `counts` holds the requests sent by method and the `pauses` taken;
    a GET that aiohttp repeats by itself, because a kept connection was dead, counts once.
    """

    def __init__(  # noqa: PLR0913 - one value each from the settings
        self,
        base_url: str,
        caller: Caller,
        *,
        concurrency: int = 128,
        timeout_seconds: float = 30.0,
        requests_per_second: float | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._base_url = base_url.rstrip("/")
        self._caller = caller
        self._budget = self._share = requests_per_second or math.inf
        # A limit is that of one key.
        self._paces: defaultdict[Caller, Pace] = defaultdict(lambda: Pace(self._share))
        self._extensions = {"timeout": httpx.Timeout(timeout_seconds).as_dict()}
        # The transport alone: a client costs a quarter of a request (measured), would keep cookies, and log what a
        # server writes beside its status.
        self._transport = transport or _Transport(
            limits=httpx.Limits(max_connections=concurrency, keepalive_expiry=30), proxy=_proxy_to(self._base_url)
        )
        self.counts: Counter[str] = Counter()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._transport.aclose()

    def share_budget(self, processes: int) -> None:
        """Send one part of `requests_per_second`, because so many processes share it."""
        self._share = self._budget / processes
        for pace in self._paces.values():
            pace.per_second = self._share

    async def get(self, project_id: str, caller: Caller | None = None) -> Integration:
        """Read one integration. Raises RowTrouble."""
        return Integration.parse(await self._request("GET", _segment(project_id), caller))

    async def patch(
        self,
        project_id: str,
        fields: Mapping[str, str],
        caller: Caller | None = None,
        still_allowed: Callable[[], None] | None = None,
    ) -> Integration:
        """
        Send exactly these fields. Raises RowTrouble; its `may_have_acted` tells whether to look before worrying.

        `still_allowed` is asked right before they leave, after every pause, and may raise.
        """
        return Integration.parse(
            await self._request("PATCH", _segment(project_id), caller, _json(fields), still_allowed)
        )

    async def create(
        self,
        project_id: str,
        fields: Mapping[str, str],
        caller: Caller | None = None,
        still_allowed: Callable[[], None] | None = None,
    ) -> Created:
        """
        Create the integration from these fields. `still_allowed` as in `patch`.

        Raises RowTrouble; when it `may_have_acted`, the secret of what was created is lost.
        """
        body = await self._request("POST", _segment(project_id), caller, _json(fields), still_allowed)
        return Created(Integration.parse(body), _signing_secret(body))

    async def regenerate(
        self, project_id: str, caller: Caller | None = None, still_allowed: Callable[[], None] | None = None
    ) -> SecretStr | None:
        """
        Let Jelou make a new signing secret; the former one is worthless at once. None when the answer held none.

        `still_allowed` as in `patch`. Raises RowTrouble; when it `may_have_acted`, the new secret is lost.
        """
        path = f"{_segment(project_id)}/secret/regenerate"
        return _signing_secret(await self._request("POST", path, caller, still_allowed=still_allowed))

    async def _request(
        self,
        method: str,
        path: str,
        caller: Caller | None,
        content: bytes | None = None,
        still_allowed: Callable[[], None] | None = None,
    ) -> dict[str, Any]:
        for pauses in range(_MAX_PAUSES):
            try:
                return await self._send(method, path, caller or self._caller, content, still_allowed)
            except (Throttled, ServerTrouble) as error:
                if not _is_pause(error) or (method == "POST" and error.may_have_acted):
                    raise
                self.counts["pauses"] += 1
                # The pace makes the others wait only where the rate is the reason.
                await asyncio.sleep(error.retry_after or _SHORTEST_PAUSE_SECONDS * 2**pauses)
        return await self._send(method, path, caller or self._caller, content, still_allowed)

    async def _send(
        self,
        method: str,
        path: str,
        caller: Caller,
        content: bytes | None,
        still_allowed: Callable[[], None] | None,
    ) -> dict[str, Any]:
        headers = _HEADERS | caller.header() | ({"Content-Type": "application/json"} if content else {})
        url = f"{self._base_url}/external-support/{path}"
        request = httpx.Request(method, _parsed(url), headers=headers, content=content, extensions=self._extensions)
        with await self._paces[caller].turn() as turn:
            if still_allowed:
                still_allowed()
            self.counts[method] += 1
            try:
                response = await self._transport.handle_async_request(request)
                async with aclosing(response):
                    _tell(turn, response)
                    return _understand(method, response, await _read(response))
            except RowTrouble:
                raise
            except Exception as error:  # noqa: BLE001 - whatever broke, it may have left; the text may hold it
                raise _no_answer(method, error) from None


@lru_cache(maxsize=1024)
def _parsed(url: str) -> httpx.URL:
    """Kept from a row's first request to its last: parsing costs a tenth of a request (measured)."""
    return httpx.URL(url)


def _tell(turn: Turn, response: httpx.Response) -> None:
    """What this answer says about how fast more may follow."""
    if response.status_code != 429 and response.status_code < 500:
        turn.accepted()
        return
    pause = _retry_after(response.headers)
    if pause is not None and pause > _MAX_PAUSE_SECONDS:
        return
    if response.status_code == 429:
        turn.refused(pause)
    elif pause is not None:
        turn.overloaded(pause)


def _proxy_to(url: str) -> httpx.Proxy | None:
    """As the environment says: HTTPS_PROXY, ALL_PROXY, NO_PROXY. Raises SettingsError."""
    there, proxies = httpx.URL(url), getproxies()
    address = proxies.get(there.scheme) or proxies.get("all")
    if not address or proxy_bypass(there.host):
        return None
    try:
        proxy = httpx.Proxy(address if "://" in address else f"http://{address}")
    except (httpx.InvalidURL, ValueError):
        # Its text holds the address, which may hold a password.
        raise SettingsError([Fault(f"{there.scheme.upper()}_PROXY", "is not the address of a proxy")]) from None
    # As a header, because aiohttp gives up the other way to say it (deprecated since 3.14).
    login = {"Proxy-Authorization": _basic(*proxy.auth)} if proxy.auth else {}
    return httpx.Proxy(proxy.url, headers=login)


def _basic(user: str, password: str) -> str:
    return f"Basic {b64encode(f'{user}:{password}'.encode()).decode()}"


def _segment(project_id: str) -> str:
    return quote(project_id, safe="")


def _json(fields: Mapping[str, str]) -> bytes:
    return json.dumps(dict(fields)).encode()


def _no_answer(method: str, error: Exception) -> Passing:
    # httpx-aiohttp has one class for a connection refused and one dropped; aiohttp's own tells them apart.
    if isinstance(error, httpx.ConnectError) or isinstance(error.__cause__, aiohttp.ClientConnectorError):
        return Unreachable(f"no connection to Jelou for {method}")
    return NoAnswer(f"no readable answer from Jelou to {method} ({type(error).__name__})")


async def _read(response: httpx.Response) -> bytes:
    body = b""
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > _MAX_ANSWER_BYTES:
            raise NoAnswer("Jelou's answer is larger than 1 MiB")
    return body


def _understand(method: str, response: httpx.Response, raw: bytes) -> dict[str, Any]:
    """The body of an answer that says success."""
    body = _json_object(raw)
    status = response.status_code
    if not response.is_success:
        raise _error(method, status, body, _retry_after(response.headers))
    if body is None:
        raise NoAnswer(f"Jelou answered {status} to {method} with a body that is not a JSON object")
    if body.get("status", 1) != 1 or body.get("error"):
        raise Contradicted(f"Jelou answered {status} to {method} with a body that says failure{_details(body)}")
    return body


def _error(method: str, status: int, body: Mapping[str, Any] | None, retry_after: float | None) -> RowTrouble:
    kind = _BY_STATUS.get(status, ServerTrouble if status >= 500 else Unexpected)
    message = f"Jelou answered {status} to {method}{_details(body or {})}"
    return kind(message, retry_after) if issubclass(kind, Passing) else kind(message)


def _details(body: Mapping[str, Any]) -> str:
    """What may be repeated of a body: known codes and field names, because anything else could be an echo."""
    error = body.get("error")
    codes = [part.get("code") for part in (body, error) if isinstance(part, dict)]
    blamed = body.get("validationError")
    said = [code for code in codes if isinstance(code, str) and code in _KNOWN_CODES]
    said += [field for field in _KNOWN_FIELDS if isinstance(blamed, dict) and field in blamed]
    return f" ({', '.join(said)})" if said else ""


def _json_object(raw: bytes) -> dict[str, Any] | None:
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return body if isinstance(body, dict) else None


def _retry_after(headers: httpx.Headers) -> float | None:
    """Seconds, or a date (RFC 9110 §10.2.3); None when absent or unreadable."""
    given = headers.get("Retry-After", "").strip()
    if given.isascii() and given.isdigit():
        return float(given)
    until = _date(given)
    return max(0.0, (until - _their_now(headers)).total_seconds()) if until else None


def _their_now(headers: httpx.Headers) -> datetime:
    """What time it is by the server's clock: ours, unless its own date differs from it."""
    ours, theirs = datetime.now(UTC), _date(headers.get("Date", ""))
    return theirs if theirs and abs(theirs - ours) > _SAME_TIME else ours


def _date(text: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _is_pause(error: Passing) -> bool:
    """Whether the request is sent again when its turn comes, which the pace decides, or given back to the caller."""
    if error.retry_after is None:
        return isinstance(error, Throttled)
    return error.retry_after <= _MAX_PAUSE_SECONDS


def _fields(body: Mapping[str, Any]) -> Mapping[str, Any]:
    data = body.get("data")
    return data if isinstance(data, dict) else body


def _signing_secret(body: Mapping[str, Any]) -> SecretStr | None:
    secret = _text(_fields(body).get("signingSecret"))
    return SecretStr(secret) if secret else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _moment(value: object) -> datetime | None:
    """ISO 8601 to whole seconds: prose dates carry milliseconds, panel dates do not, and they are compared."""
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None
    if moment is None:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).replace(microsecond=0)
