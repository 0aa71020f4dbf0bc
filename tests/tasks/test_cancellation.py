"""A run that is told to end leaves its work and goes on to its report."""

import asyncio
import os
import signal

import pytest

from tasks.cancellation import left_at_sigterm


async def test_the_work_ends_also_when_the_signal_strikes_in_a_callback():
    asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGTERM)

    async with asyncio.timeout(5), left_at_sigterm():
        await asyncio.Event().wait()

    assert asyncio.current_task().cancelling() == 0


async def test_any_other_cancellation_goes_on():
    asyncio.get_running_loop().call_soon(asyncio.current_task().cancel)

    with pytest.raises(asyncio.CancelledError):
        async with left_at_sigterm():
            await asyncio.Event().wait()


async def test_afterwards_the_signal_means_what_it_meant_before():
    before = signal.getsignal(signal.SIGTERM)

    async with left_at_sigterm():
        assert signal.getsignal(signal.SIGTERM) is not before

    assert signal.getsignal(signal.SIGTERM) is before


def test_in_another_thread_the_work_is_done_without_it():
    async def work():
        async with left_at_sigterm():
            return "done"

    assert asyncio.run(asyncio.to_thread(asyncio.run, work())) == "done"
