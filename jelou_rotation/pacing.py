"""When the next request may leave. One pace for everything that is sent with one API key."""

import asyncio


class Pace:
    """
    Spaces requests evenly and holds all of them back when Jelou asks for a pause.

    `per_second` is the most requests a second, None for no bound. Belongs to the event loop it is first used in.
    """

    def __init__(self, per_second: float | None = None) -> None:
        self._interval = 1 / per_second if per_second else 0.0
        self._next = 0.0
        self._queue = asyncio.Lock()

    async def turn(self) -> None:
        """Wait until one request may leave, first come, first served."""
        now = asyncio.get_running_loop().time
        async with self._queue:
            while (wait := self._next - now()) > 0:  # noqa: ASYNC110 - hold() moves the moment while we sleep
                await asyncio.sleep(wait)
            # From when it was due, not from when the sleep ended: a late timer must not slow the whole run down.
            self._next = max(self._next, now() - self._interval) + self._interval

    def hold(self, seconds: float) -> None:
        """Let nothing leave for so long."""
        self._next = max(self._next, asyncio.get_running_loop().time() + seconds)
