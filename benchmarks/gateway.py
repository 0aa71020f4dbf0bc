"""
A gateway that costs as little as Python allows: a fixed latency, keep-alive, just enough state for a read-back to hold.

    python benchmarks/gateway.py [--port 4020] [--latency-ms 50] [--per-second 500]

Every project exists. GET /counters says what came since it was asked last; `busiest` is the largest share of one core
that this process took in any second of that time, `late_ms` how much later than it should an answer left, on average.
"""

import argparse
import asyncio
import json
import time
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

WEBHOOK = "https://panel.acme.example/jelou/events"

_COUNTERS = b"/counters"
_BEGAN_AT = "2026-01-15T08:30:00.000Z"


class Gateway:
    """What all connections share. `per_second` is the most requests a second; the others are answered with 429."""

    def __init__(self, latency: float, per_second: float | None = None) -> None:
        self.latency = latency
        self._per_second = per_second
        self._free = per_second or 0.0
        self._refilled_at = time.monotonic()
        self._projects: dict[bytes, dict[str, str]] = {}
        self._answers: dict[bytes, bytes] = {}
        self._fresh = _answer(200, {"webhookUrl": WEBHOOK, "authType": "bearer", "updatedAt": _BEGAN_AT})
        self._refusal = _answer(429, {"code": "too_many_requests"})
        self._requests: Counter[bytes] = Counter()
        self._late = self._busiest = 0.0

    async def serve(self, port: int) -> asyncio.Server:
        loop = asyncio.get_running_loop()
        return await loop.create_server(lambda: _Connection(self), "127.0.0.1", port, backlog=1024)

    def answer(self, method: bytes, path: bytes, body: bytes) -> bytes:
        self._requests[method] += 1
        if self._per_second and not self._admits(self._per_second):
            return self._refusal
        if method == b"PATCH":
            self._change(path, json.loads(body))
        return self._answers.get(path, self._fresh)

    def note_late(self, seconds: float) -> None:
        self._late += seconds

    def counters(self) -> bytes:
        requests = {method.decode(): count for method, count in self._requests.items()}
        late = self._late / max(1, sum(requests.values()))
        found = {"requests": requests, "busiest": round(self._busiest, 3), "late_ms": round(late * 1000, 2)}
        self._requests.clear()
        self._late = self._busiest = 0.0
        return _answer(200, found)

    async def watch_itself(self) -> None:
        """Once a second, without an end."""
        while True:
            began, worked = time.perf_counter(), time.process_time()
            await asyncio.sleep(1)
            self._busiest = max(self._busiest, (time.process_time() - worked) / (time.perf_counter() - began))

    def _admits(self, per_second: float) -> bool:
        now = time.monotonic()
        self._free = min(per_second, self._free + (now - self._refilled_at) * per_second)
        self._refilled_at = now
        if self._free < 1:
            return False
        self._free -= 1
        return True

    def _change(self, path: bytes, fields: Mapping[str, str]) -> None:
        project = self._projects.setdefault(path, {"webhookUrl": WEBHOOK, "authType": "bearer"})
        project.update((name, fields[name]) for name in ("webhookUrl", "authType") if name in fields)
        moment = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._answers[path] = _answer(200, project | {"updatedAt": moment.replace("+00:00", "Z")})


class _Connection(asyncio.Protocol):
    """Requests with a Content-Length or none, one after the other or ahead of their answers."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._loop = asyncio.get_running_loop()
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (end := self._received.find(b"\r\n\r\n")) >= 0:
            head, begin = self._received[:end], end + 4
            length = _content_length(head)
            if len(self._received) < begin + length:
                return
            body, self._received = self._received[begin : begin + length], self._received[begin + length :]
            method, path, _ = head.split(b" ", 2)
            self._take(method, path, body)

    def _take(self, method: bytes, path: bytes, body: bytes) -> None:
        if path == _COUNTERS:
            self._transport.write(self._gateway.counters())
            return
        due = self._loop.time() + self._gateway.latency
        self._loop.call_at(due, self._give, due, self._gateway.answer(method, path, body))

    def _give(self, due: float, answer: bytes) -> None:
        self._gateway.note_late(self._loop.time() - due)
        self._transport.write(answer)


def _content_length(head: bytes) -> int:
    _, found, rest = head.lower().partition(b"\r\ncontent-length:")
    return int(rest.split(b"\r\n", 1)[0]) if found else 0


def _answer(status: int, body: Mapping[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    head = f"HTTP/1.1 {status} -\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--port", type=int, default=4020)
    parser.add_argument("--latency-ms", type=float, default=50)
    parser.add_argument("--per-second", type=float)
    options = parser.parse_args()
    gateway = Gateway(options.latency_ms / 1000, options.per_second)
    async with await gateway.serve(options.port):
        await gateway.watch_itself()


if __name__ == "__main__":
    asyncio.run(main())
