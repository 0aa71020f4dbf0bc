"""
When the next request may leave. One pace for everything that is sent with one API key.

Nobody has published Jelou's limits, so they are found out: begin with few requests at once and let every answer make
room for more, until some are refused. What was accepted until then is sent in each following round of a good second:
quickly, and then nothing until the round is over, so that a pause asked for costs little. After some rounds try a few
more, and when they are accepted, many more.

A refusal stops everything until the requests on their way are answered. When nearly all of them are accepted, and
again the next time, the rate is not the reason: then only the refused request waits, which its sender has to see to.

Measured with 50 ms latency, 128 at once, the 40,000 requests of 10,000 projects, and limits of 20, 100 and 500 a second
(bucket, fixed and sliding windows; kept, halved, doubled; no pause told, whole seconds, a date): 77 of 81 within 1.15
times the shortest time possible and under 3 % refused; 1.23 and 5.6 % at worst. In runs of a minute 70 (1.26, 3.3 %);
in runs of ten seconds the beginning shows, 7 % refused. Ten a second or fewer: up to one refused in ten. No limit at
all: 0.3 s once, for the beginning. Refusals that have nothing to do with the rate, 3 % of them: 1.15 times the time,
two to three times where each asks for a second; at 5 %, one start in twenty ends slow. A bucket that holds a half, a
quarter, a tenth of a second's requests is used to three quarters, a half, a third: there JELOU_REQUESTS_PER_SECOND
helps, which spreads requests evenly.
"""

import asyncio
import math
from types import TracebackType
from typing import Self

from jelou_rotation.errors import Throttled

# A burst that every limit worth having allows; after it half of what was answered may be unanswered. So the first time
# about a quarter of one second's requests are refused, 40 % at worst (with a quarter: a fifth, and 0.3 s more once).
_FREE = 16
_FEWEST_AT_ONCE = 4
_UNANSWERED_SHARE = 0.5

# Limits are told in requests a second: the rest is for requests that overtake each other.
_ROUND_SECONDS = 1.03
# A round's requests leave in a third of it. Where that is refused, more slowly.
_QUICKEST = 3.0
_SLOWED_BELOW = 0.6

# Rounds without a refusal until more is tried. Each trial costs at least one refused request, so where few are allowed
# one in 120, but not for ever; and the pause asked for.
_FIRST_PATIENCE, _PATIENCE, _MOST_PATIENCE = 2, 3, 8
_PATIENCE_REQUESTS = 120
_PATIENCE_A_PAUSE = 3
# 2 % more, 8 %, 32 %, then the double each round: a bucket pays for a while with what it has saved.
_FIRST_STEP, _STEP_GROWTH = 0.02, 4.0

# Refused before one round was taken whole: the limit was misjudged.
_CORRECTION, _DEEPEST_CUT = 0.93, 0.7
# Refused so near the limit, it is the limit.
_NEAR = 0.8
# No 429 slows the run down further: pauses and trials keep it bearable for a lower limit, and JELOU_REQUESTS_PER_SECOND
# is there for that.
_LOWEST_LIMIT = 5.0

# Of the requests on their way at a refusal: more refused than this, and the rate is the reason. Fewer requests than
# these acquit nobody.
_FEWEST_WITNESSES = 12
_FEWEST_REFUSED, _REFUSED_SHARE, _REFUSED_SHARE_OF_FEW = 3, 0.14, 0.25
# Each refusal adds one, ten accepted requests take it away; so many are too many to be chance.
_FORGIVEN = 0.1
_TOO_MANY, _TOO_MANY_AT_FIRST, _TOO_MANY_STRAYS = 3, 4, 8
# How long refusals that do not follow the rate are expected to go on.
_STRAYS_SECONDS = 30.0

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

    A refused request that is sent again first waits for the pause it was told: the pace makes everybody wait only
    where the rate is the reason.
    """

    def __init__(self, per_second: float | None = None) -> None:
        self.per_second = per_second or math.inf
        self._limit = math.inf
        self._round = _Round()
        self._quickness = _QUICKEST
        self._patience = 0.0
        self._due = 0.0
        # Requests sent before a pause say nothing about the rate after it.
        self._generation = 0
        self._on_trial = False
        self._paused_at = 0.0
        self._refused_since: float | None = None
        self._refused_in_a_row = 0
        self._unanswered = 0
        self._answered = 0
        self._doubt: _Doubt | None = None
        self._suspicion = 0.0
        self._acquitted_in_a_row = 0
        self._strays_until = -math.inf
        self._queue = asyncio.Lock()
        self._room = asyncio.Event()

    async def turn(self) -> "Turn":
        """
        Wait until one request may leave, first come, first served.

        Raises Throttled, without sending anything, when Jelou has taken nothing for two minutes.
        """
        now = _now()
        if self._queue.locked() or self._unanswered >= self._most_unanswered() or self._wait(now) > 0:
            now = await self._wait_in_line()
        if (rate := min(self.per_second, self._round.allowed * self._quickness)) < math.inf:
            # From when it was due, not from when the sleep ended: a late timer must not slow the whole run down.
            self._due = max(self._due, now - max(_BURST_SECONDS, 1 / rate)) + 1 / rate
        return Turn(self)

    def hold(self, seconds: float) -> None:
        """Let nothing leave for so long."""
        self._due = max(self._due, _now() + seconds)

    async def _wait_in_line(self) -> float:
        async with self._queue:
            while True:
                await self._wait_for_room()
                now = _now()
                if (wait := self._wait(now)) <= 0:
                    return now
                self._give_up_in_the_end()
                await asyncio.sleep(wait)

    async def _wait_for_room(self) -> None:
        while self._unanswered >= self._most_unanswered():
            self._room.clear()
            try:
                async with asyncio.timeout(_UNANSWERED_SECONDS):
                    await self._room.wait()
            except TimeoutError:
                if self._doubt:
                    self._judge(self._doubt)
                return

    def _wait(self, now: float) -> float:
        """Seconds until the next request is due."""
        current = self._round
        if now >= current.ends:
            current.begin(now, self._limit, self._patience)
        if current.sent >= current.allowed:
            return max(current.ends, self._due) - now
        return self._due - now

    def _give_up_in_the_end(self) -> None:
        if self._refused_since is not None and _now() - self._refused_since > _GIVE_UP_SECONDS:
            raise Throttled("Jelou has refused every request for two minutes", math.inf)

    def _most_unanswered(self) -> float:
        if self._doubt:
            return 0
        if self._on_trial:
            return 1
        if self._limit < math.inf:
            return math.inf
        return max(_FREE - self._answered, _FEWEST_AT_ONCE, self._answered * _UNANSWERED_SHARE)

    def _left(self) -> int:
        self._unanswered += 1
        self._round.sent += 1
        return self._generation

    def _came_back(self, generation: int) -> None:
        if generation == self._generation:
            self._unanswered -= 1
            if self._doubt and not self._unanswered:
                self._judge(self._doubt)
            self._room.set()

    def _take_accepted(self, generation: int) -> None:
        self._answered += 1
        if generation != self._generation:
            return
        self._suspicion = max(0.0, self._suspicion - _FORGIVEN)
        self._refused_in_a_row = 0
        self._refused_since = None
        if self._doubt:
            self._doubt.accepted += 1
        if self._on_trial:
            self._on_trial = False
            # The others follow only now, and so do those of the next round.
            self._round.ends = _now() + _ROUND_SECONDS

    def _take_refused(self, generation: int, retry_after: float | None) -> None:
        until = None if retry_after is None else _now() + retry_after
        if generation != self._generation:
            self.hold(retry_after or 0)
            return
        self._round.sent -= 1
        if self._doubt:
            self._doubt.add(until)
            return
        self._suspicion += 1
        if self._on_trial:
            self._pause(until)
        elif not self._is_stray():
            self._doubt = _Doubt(until, tried_more=self._round.allowed > self._limit)

    def _is_stray(self) -> bool:
        """Whether it is one more of the refusals that do not follow the rate."""
        too_many = 2 if self._round.sent >= self._limit else _TOO_MANY_STRAYS
        return _now() < self._strays_until and self._suspicion < too_many

    def _judge(self, doubt: "_Doubt") -> None:
        """All that were on their way are answered: was it the rate?"""
        self._doubt = None
        known = self._limit < math.inf
        if (
            self._suspicion >= (_TOO_MANY if known else _TOO_MANY_AT_FIRST)
            or self._round.sent >= _NEAR * self._limit
            or doubt.is_the_rate(known=known)
        ):
            self._cut(doubt)
        elif not doubt.is_unrelated():
            self._round.count_as_far_as_it_went()
            self._slow_down_if_refused_early()
            self._pause(doubt.until)
        else:
            self._acquit(doubt.until)

    def _acquit(self, until: float | None) -> None:
        """With a pause asked for only the second time, and the third where a limit is known."""
        known = self._limit < math.inf
        self._acquitted_in_a_row += 1
        if until is None or self._acquitted_in_a_row > 1 + known:
            self._strays_until = _now() + _STRAYS_SECONDS
            return
        if known:
            self._round.count_as_far_as_it_went()
            self._limit = max(_LOWEST_LIMIT, self._limit * _CORRECTION)
        self._pause(until)

    def _cut(self, doubt: "_Doubt") -> None:
        """Take what was accepted as the limit, and pause."""
        former = self._limit
        self._limit = max(_LOWEST_LIMIT, self._learn(former, tried_more=doubt.tried_more))
        self._learn_patience(former, doubt)
        if former < math.inf and not self._slow_down_if_refused_early():
            self._quickness = min(_QUICKEST, 1 + (self._quickness - 1) * 1.5)
        if former == math.inf or (doubt.tried_more and self._limit > 1.1 * former):
            # The rounds before were slower: the next one would run into their requests.
            self._round.ends = _now() + _ROUND_SECONDS
        self._suspicion = 0.0
        self._acquitted_in_a_row = 0
        self._round.count_anew(self._limit)
        self._pause(doubt.until)

    def _learn(self, former: float, *, tried_more: bool) -> float:
        """The limit as this round shows it, in requests a round."""
        current = self._round
        accepted: float = current.sent
        if former == math.inf:
            return max(accepted, current.sent_before)
        if tried_more:
            if accepted > 1.1 * former:
                return accepted
            return max(former, min(accepted, current.allowed_before), current.proven)
        if not current.taken:
            accepted *= max(1, _ROUND_SECONDS / (_now() - self._paused_at))
        return max(min(accepted, _CORRECTION * former), _DEEPEST_CUT * former)

    def _learn_patience(self, former: float, doubt: "_Doubt") -> None:
        """More of it each time the limit is found where it was."""
        if former == math.inf:
            self._patience = _FIRST_PATIENCE
        elif doubt.tried_more and self._round.sent <= 1.1 * former:
            self._patience = 1 if self._limit > 1.1 * former else self._patience * 2
        most = min(max(_PATIENCE, _PATIENCE_REQUESTS / self._limit), _MOST_PATIENCE)
        if doubt.until is not None:
            most += _PATIENCE_A_PAUSE * max(1, doubt.until - _now())
        self._patience = min(self._patience, most)

    def _slow_down_if_refused_early(self) -> bool:
        if early := self._round.sent < _SLOWED_BELOW * self._round.allowed < math.inf:
            self._quickness = 1 + (self._quickness - 1) / 2
        return early

    def _pause(self, until: float | None) -> None:
        now = _now()
        self._paused_at = now
        if until is None:
            rest = self._round.ends - now if self._limit < math.inf else 0
            self.hold(max(rest, _SHORTEST_PAUSE_SECONDS * 2**self._refused_in_a_row))
        else:
            self.hold(until - now)
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
        self._refused_since = _now() if self._refused_since is None else self._refused_since
        self._unanswered = 0
        self._doubt = None
        self._on_trial = True
        self._round.sent = 0
        self._round.ends = self._due
        self._room.set()


class _Round:
    """How many requests may leave until when, and how many have; a refused one is not counted."""

    def __init__(self) -> None:
        self.ends = 0.0
        self.sent = self.sent_before = 0
        self.allowed = self.allowed_before = math.inf
        # Allowed in the round before the last: what was too much would have been refused since.
        self.proven = 0.0
        # Rounds taken whole since the last cut.
        self.taken = 0.0

    def begin(self, now: float, limit: float, patience: float) -> None:
        self.taken += self.sent >= self.allowed
        self.sent_before, self.sent = self.sent, 0
        self.ends = now + _ROUND_SECONDS
        self.proven, self.allowed_before = min(self.allowed_before, 9 * limit), self.allowed
        self.allowed = limit
        if limit < math.inf and self.taken >= patience:
            step = _FIRST_STEP * _STEP_GROWTH ** (self.taken - patience)
            self.allowed = min(limit * (1 + step), 2 * self.allowed_before)

    def count_anew(self, limit: float) -> None:
        """After a cut: what was allowed before it proves nothing any more."""
        self.taken = 0.0
        self.allowed, self.allowed_before = min(self.allowed, limit), min(self.allowed_before, limit)

    def count_as_far_as_it_went(self) -> None:
        if self.allowed < math.inf:
            self.taken += self.sent / self.allowed


class _Doubt:
    """A refusal, until the answers to all requests that were on their way tell whether the rate is the reason."""

    def __init__(self, until: float | None, *, tried_more: bool) -> None:
        self.until = until
        self.tried_more = tried_more
        self.accepted = self.refused = 0

    def add(self, until: float | None) -> None:
        self.refused += 1
        if until is not None:
            self.until = max(until, self.until or 0)

    def is_the_rate(self, *, known: bool) -> bool:
        seen = self.accepted + self.refused
        if seen < _FEWEST_WITNESSES:
            return self.refused >= (1 if known else 2) and self.refused > _REFUSED_SHARE_OF_FEW * seen
        return self.refused >= _FEWEST_REFUSED and self.refused > _REFUSED_SHARE * seen

    def is_unrelated(self) -> bool:
        return self.accepted + self.refused >= _FEWEST_WITNESSES


class Turn:
    """One request on its way; without a word about its answer it says nothing about Jelou's limit."""

    __slots__ = ("_generation", "_pace")

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
