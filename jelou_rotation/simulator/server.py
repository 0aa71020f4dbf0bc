"""The simulator on a socket, with the faults that only a socket can show."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from aiohttp import web
from anyio.from_thread import start_blocking_portal

from jelou_rotation.simulator import control, gateway
from jelou_rotation.simulator.answers import Answer, Call, RefusalError, failure, faulty
from jelou_rotation.simulator.control import SIMULATOR
from jelou_rotation.simulator.faults import Fault
from jelou_rotation.simulator.state import Simulator

BASE_PATHS = ("jelouapi/v1", "platform/v1")
GARBAGE = b"\x16\x03\x01\x00\xff these bytes are not HTTP\r\n\r\n"


def app(simulator: Simulator) -> web.Application:
    application = web.Application()
    application[SIMULATOR] = simulator
    application.add_routes(control.routes())
    for base_path in BASE_PATHS:
        resource = f"/{base_path}/external-support/{{project_id:[^/]+}}"
        for method in ("POST", "GET", "PATCH", "DELETE"):
            application.router.add_route(method, resource, _serve_gateway)
        application.router.add_post(f"{resource}/secret/regenerate", _serve_gateway)
    application.router.add_route("*", "/{path:.*}", _serve_nothing)
    return application


@contextmanager
def running(simulator: Simulator, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """Serve from a thread of its own and yield the URL; port 0 is any free one."""
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(listening(simulator, host, port)) as url,
    ):
        yield url


@asynccontextmanager
async def listening(simulator: Simulator, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
    """Serve from the running loop and yield the URL; port 0 is any free one."""
    runner = await _start(simulator, host, port)
    try:
        yield simulator.base_url
    finally:
        await runner.cleanup()


async def serve(simulator: Simulator, host: str, port: int) -> None:
    """Serve until cancelled."""
    async with listening(simulator, host, port):
        await asyncio.Event().wait()


async def _start(simulator: Simulator, host: str, port: int) -> web.AppRunner:
    # Nobody waits for a simulated delay when the simulator stops.
    runner = web.AppRunner(app(simulator), access_log=None, shutdown_timeout=0.05)
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    simulator.move_to(f"http://{host}:{runner.addresses[0][1]}")
    return runner


async def _serve_gateway(request: web.Request) -> web.Response:
    simulator = request.app[SIMULATOR]
    if not _is_served(simulator, request.path):
        return await _serve_nothing(request)
    call = await _call(request)
    gateway.arrived(simulator, call)
    fault = simulator.next_fault(call.method, call.project_id)
    if fault:
        return await _serve_fault(request, call, fault)
    return _respond(simulator, gateway.act(simulator, call))


async def _serve_nothing(request: web.Request) -> web.Response:
    """An address that is not there."""
    simulator = request.app[SIMULATOR]
    call = await _call(request)
    gateway.arrived(simulator, call)
    refusal = RefusalError(404, "No such address")
    return _respond(simulator, failure(simulator.switches.error_body, call, refusal))


async def _serve_fault(request: web.Request, call: Call, fault: Fault) -> web.Response:
    simulator = request.app[SIMULATOR]
    await asyncio.sleep(fault.delay_seconds)
    answer = gateway.act(simulator, call) if fault.carries_out else Answer(fault.answer_status, b"{}")
    match fault.kind:
        case "delay":
            return _respond(simulator, answer)
        case "reset_before" | "reset_after":
            simulator.answers[fault.kind] += 1
            return _reset(request)
        case "garbage":
            simulator.answers[fault.kind] += 1
            return _hang_up(request, GARBAGE)
        case "truncated":
            simulator.answers[fault.kind] += 1
            return _hang_up(request, _truncated(answer))
        case _:
            named = None if fault.kind == "status" else fault.kind
            return _respond(simulator, faulty(simulator, call, fault, request.rel_url.raw_path), named)


def _is_served(simulator: Simulator, path: str) -> bool:
    served = simulator.switches.base_path
    return served == "both" or path.startswith(f"/{served}/")


async def _call(request: web.Request) -> Call:
    return Call(
        method=request.method,
        project_id=request.match_info.get("project_id", ""),
        headers=request.headers,
        body=await request.read(),
        regenerates=request.rel_url.raw_path.endswith("/secret/regenerate"),
    )


def _respond(simulator: Simulator, answer: Answer, counted_as: str | None = None) -> web.Response:
    simulator.answers[counted_as or str(answer.status)] += 1
    return web.Response(
        status=answer.status, body=answer.body, content_type=answer.content_type, headers=answer.headers
    )


def _truncated(answer: Answer) -> bytes:
    head = (
        f"HTTP/1.1 {answer.status} Simulated\r\n"
        f"Content-Type: {answer.content_type}\r\n"
        f"Content-Length: {len(answer.body)}\r\n\r\n"
    )
    return head.encode() + answer.body[: len(answer.body) // 2]


def _reset(request: web.Request) -> web.Response:
    if request.transport:
        # Without lingering the kernel sends a reset instead of a polite end.
        linger = struct.pack("ii", 1, 0)
        request.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        request.transport.abort()
    return web.Response()


def _hang_up(request: web.Request, last_words: bytes) -> web.Response:
    """The response returned goes nowhere: the connection is closing."""
    if request.transport:
        request.transport.write(last_words)
        request.transport.close()
    return web.Response()
