"""How a run ends early: cancelled in Prefect, or its process told to end."""

import asyncio
import signal
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prefect import runtime
from prefect.client.orchestration import get_client


@asynccontextmanager
async def left_at_sigterm() -> AsyncIterator[None]:
    """
    SIGTERM, by which Prefect's worker cancels a run, ends this block at its next `await`; what follows it still runs.

    Prefect's own handler raises wherever the process happens to be. In a busy run that is mostly a callback or another
    task: asyncio keeps the exception there, and the run goes on writing to its end or beside its own report (measured).
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    if task is None or threading.current_thread() is not threading.main_thread():
        # Only the main thread hears signals.
        yield
        return
    told = asyncio.Event()

    def leave() -> None:
        told.set()
        task.cancel()

    former = signal.signal(signal.SIGTERM, lambda *_: loop.call_soon_threadsafe(leave))
    try:
        yield
    except asyncio.CancelledError:
        if not told.is_set():
            raise
        task.uncancel()
    finally:
        signal.signal(signal.SIGTERM, former)


async def is_being_cancelled() -> bool:
    """Whether somebody cancelled this run in Prefect."""
    async with get_client() as client:
        flow_run = await client.read_flow_run(runtime.flow_run.id)
    return bool(flow_run.state and flow_run.state.is_cancelling())
