"""
When the next request may leave. One pace for everything that is sent with one API key.

Nobody has published Jelou's limits, so they are found out: begin with few requests at once, let every answer make room
for more, and take the first 429 as the measure: what was accepted in the second before it is what may be sent. From
then on stay a little beneath and try more with time, slowly at first, then faster and faster.

Measured with 50 ms latency and limits of 20, 100 and 500 requests a second (token bucket, fixed and sliding window),
30 seconds each: 1.10 times the shortest time possible and under 3 % refused; where each 429 asks for a whole second,
1.12 times at 20 and 100, 1.23 at 500. No limit at all: 0.6 s once, for the beginning. Refusals that have nothing to do
with the rate cost most: 1 % of them 2.7 times the time, 3 % can end at the lowest limit. tests/domain/test_pacing.py.
"""

import asyncio
import math
from collections import deque
from types import TracebackType
from typing import Self

from jelou_rotation.errors import Throttled

# A burst that every limit worth having allows; after it a quarter of what was answered may be unanswered. So the first
# time about a fifth of one second's requests are refused, 40 % at worst (with a half: a quarter, and 0.3 s less once).
_FREE = 16
_FEWEST_AT_ONCE = 4
_UNANSWERED_SHARE = 0.25

# Beneath the limit after a cut: 3 %, all of it regained after the patience, 1.5 times the limit after twice that.
_MARGIN = 0.03
_PATIENCE_SECONDS = 1.8
_PATIENCE_MOST_SECONDS = 3.0
# Trying more costs at least one refused request: where few are allowed, about one in fifty.
_PATIENCE_REQUESTS = 50
# A pause asked for costs everybody that long: try again after twelve times as long, so that it costs about 7 %.
_PATIENCE_PAUSES = 12

# A cut this soon after the one before means that the limit was misjudged: 10 % less, then 40 %, at most a half.
_SOON_SECONDS = 2.0
_TOO_SOON_SECONDS = 0.9
_FIRST_CORRECTION, _NEXT_CORRECTION, _DEEPEST_CUT = 0.9, 0.6, 0.5

# Of the requests on their way at a 429: when so many and no more of them are refused too, our rate is not the reason,
# or hardly more than allowed. To cut for each of these would end at a few requests a second.
_FEWEST_WITNESSES = 4
_LONE_SHARE = 0.25

# No 429 slows the run down further: pauses and trials keep it bearable for a lower limit, and JELOU_REQUESTS_PER_SECOND
# is there for that.
_LOWEST_LIMIT = 5.0

# When Jelou does not say how long; doubled each time until something is accepted, to 13 seconds.
_SHORTEST_PAUSE_SECONDS = 0.05
_MOST_DOUBLINGS = 8
# What a late timer may catch up, and so the burst after an idle time.
_BURST_SECONDS = 0.05
# A request without an answer for so long no longer keeps others from leaving.
_UNANSWERED_SECONDS = 1.0
# Refused for so long, those who wait are told; one request a pause still looks whether it is over.
_GIVE_UP_SECONDS = 120.0


class Pace:
    """
    Lets requests leave as fast as Jelou takes them: `with await pace.turn() as turn`, then say what came back.

    `per_second` is the most requests a second, infinite for no bound; it may be set at any time, which is how several
    processes can share one budget. Belongs to the event loop it is first used in.
    """

    def __init__(self, per_second: float | None = None) -> None:
        self.per_second = per_second or math.inf
        self._limit = math.inf
        self._patience = _PATIENCE_SECONDS
        self._due = 0.0
        # Requests sent before a cut say nothing about the rate after it.
        self._generation = 0
        self._cut_at = 0.0
        self._steady_since = 0.0
        self._on_trial = False
        self._refused_since: float | None = None
        self._refused_in_a_row = 0
        self._misjudged_in_a_row = 0
        self._rate_at_cut = 0.0
        self._witnesses: list[bool] = []
        self._unanswered = 0
        self._answered = 0
        self._accepted_since_cut = 0
        self._accepted: deque[float] = deque()
        self._queue = asyncio.Lock()
        self._room = asyncio.Event()

    async def turn(self) -> "Turn":
        """
        Wait until one request may leave, first come, first served.

        Raises Throttled, without sending anything, when Jelou has taken nothing for two minutes.
        """
        async with self._queue:
            await self._wait_for_room()
            while (wait := self._due - _now()) > 0:
                self._give_up_in_the_end()
                await asyncio.sleep(wait)
            if (rate := self._rate(_now())) < math.inf:
                # From when it was due, not from when the sleep ended: a late timer must not slow the whole run down.
                self._due = max(self._due, _now() - max(_BURST_SECONDS, 1 / rate)) + 1 / rate
            return Turn(self)

    def hold(self, seconds: float) -> None:
        """Let nothing leave for so long."""
        self._due = max(self._due, _now() + seconds)

    async def _wait_for_room(self) -> None:
        while self._unanswered >= self._most_unanswered():
            self._room.clear()
            try:
                async with asyncio.timeout(_UNANSWERED_SECONDS):
                    await self._room.wait()
            except TimeoutError:
                return

    def _give_up_in_the_end(self) -> None:
        if self._refused_since is not None and _now() - self._refused_since > _GIVE_UP_SECONDS:
            raise Throttled("Jelou has refused every request for two minutes", math.inf)

    def _most_unanswered(self) -> float:
        if self._on_trial:
            return 1
        return max(_FREE - self._answered, _FEWEST_AT_ONCE, self._answered * _UNANSWERED_SHARE)

    def _rate(self, moment: float) -> float:
        """Requests a second at that moment."""
        patience = max(0.0, moment - self._steady_since) / self._patience
        return min(self.per_second, self._limit * (1 - _MARGIN + _MARGIN * patience**4))

    def _left(self) -> int:
        self._unanswered += 1
        return self._generation

    def _came_back(self, generation: int) -> None:
        if generation == self._generation:
            self._unanswered -= 1
            self._room.set()

    def _take_accepted(self, generation: int) -> None:
        now = _now()
        self._answered += 1
        self._accepted_since_cut += 1
        self._accepted.append(now)
        self._forget_before(now - 1)
        if generation != self._generation:
            self._witnesses.append(True)
            return
        self._refused_in_a_row = 0
        self._refused_since = None
        if self._on_trial:
            self._on_trial = False
            if self._was_lone():
                self._limit = max(self._limit, self._rate_at_cut)
            self._steady_since = now
            # What was not sent while the trial was out is not caught up.
            self._due = max(self._due, now)

    def _take_refused(self, generation: int, retry_after: float | None) -> None:
        self.hold(retry_after or 0)
        if generation != self._generation:
            self._witnesses.append(False)
            return
        now = _now()
        self._forget_before(now - 1)
        soon = False
        if not self._on_trial:
            self._rate_at_cut = self._rate(now)
            self._witnesses.clear()
            soon = self._cut_at > 0 and _TOO_SOON_SECONDS < now - self._steady_since < _SOON_SECONDS
            self._misjudged_in_a_row = self._misjudged_in_a_row + 1 if soon else 0
            self._limit = self._learn(now, soon=soon)
        self._patience = min(max(_PATIENCE_SECONDS, _PATIENCE_REQUESTS / self._limit), _PATIENCE_MOST_SECONDS)
        if retry_after is None:
            self.hold(max(self._until_free(now), _SHORTEST_PAUSE_SECONDS * 2**self._refused_in_a_row))
        elif not soon:
            self._patience += _PATIENCE_PAUSES * retry_after
        self._begin_trial()

    def _take_overloaded(self, generation: int, retry_after: float) -> None:
        """The rate stays, and after the pause few at once are sent again: it was not said that we send too many."""
        self.hold(retry_after)
        if generation == self._generation:
            self._answered = _FREE
            self._begin_trial()

    def _begin_trial(self) -> None:
        """After a pause one request goes ahead; the others follow when it is accepted."""
        self.hold(_SHORTEST_PAUSE_SECONDS)
        self._refused_in_a_row = min(self._refused_in_a_row + 1, _MOST_DOUBLINGS)
        self._generation += 1
        self._cut_at = _now()
        self._refused_since = self._cut_at if self._refused_since is None else self._refused_since
        self._accepted_since_cut = 0
        self._unanswered = 0
        self._on_trial = True
        self._room.set()

    def _learn(self, now: float, *, soon: bool) -> float:
        """The limit as this refusal shows it, in requests a second."""
        measured = max(_LOWEST_LIMIT, len(self._accepted))
        if self._limit == math.inf:
            return measured
        if soon:
            # A window refunds nothing: what went through since the cut before, its pause included, is the least.
            guess = self._accepted_since_cut / (now - self._cut_at) / (1 - _MARGIN)
            correction = _FIRST_CORRECTION if self._misjudged_in_a_row == 1 else _NEXT_CORRECTION
            guess = max(guess, correction * self._limit)
        elif now - self._steady_since < _TOO_SOON_SECONDS:
            # The last second reaches back behind the cut before.
            guess = self._limit
        else:
            # A window is refused at its end: the second before it was still taken.
            guess = self._rate(now - 1)
        return max(_LOWEST_LIMIT, _DEEPEST_CUT * self._limit, min(measured, guess))

    def _was_lone(self) -> bool:
        seen = len(self._witnesses)
        return seen >= _FEWEST_WITNESSES and self._witnesses.count(False) <= _LONE_SHARE * seen

    def _until_free(self, now: float) -> float:
        """Seconds after which an even pace at the limit never has more in a second than were accepted in the last."""
        interval = 1 / (self._limit * (1 - _MARGIN))
        return max((moment + 1 - count * interval for count, moment in enumerate(self._accepted)), default=now) - now

    def _forget_before(self, moment: float) -> None:
        while self._accepted and self._accepted[0] < moment:
            self._accepted.popleft()


class Turn:
    """One request on its way; without a word about its answer it says nothing about Jelou's limit."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._generation = 0

    def __enter__(self) -> Self:
        self._generation = self._pace._left()  # noqa: SLF001 - the other half of one thing
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pace._came_back(self._generation)  # noqa: SLF001 - as above

    def accepted(self) -> None:
        """Jelou let it pass, whatever it answered."""
        self._pace._take_accepted(self._generation)  # noqa: SLF001 - as above

    def refused(self, retry_after: float | None = None) -> None:
        """429, with the pause asked for in seconds."""
        self._pace._take_refused(self._generation, retry_after)  # noqa: SLF001 - as above

    def overloaded(self, retry_after: float) -> None:
        """5xx with a pause asked for, in seconds."""
        self._pace._take_overloaded(self._generation, retry_after)  # noqa: SLF001 - as above


def _now() -> float:
    return asyncio.get_running_loop().time()
