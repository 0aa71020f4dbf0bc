"""The pace against gateways with every kind of limiter, in virtual time: a minute of pacing takes a moment."""

import asyncio
import math
import random
import selectors
from collections import deque

import pytest

from jelou_rotation.errors import Throttled
from jelou_rotation.pacing import Pace

LATENCY = 0.05


class Clock(selectors.SelectSelector):
    """Waits by moving the time; `late` is how much later than asked, in seconds."""

    late = 0.0

    def __init__(self):
        super().__init__()
        self.now = 0.0

    def select(self, timeout=None):
        assert timeout is not None, "nothing will ever happen"
        self.now += timeout + self.late if timeout > 0 else 0
        return []


class LateClock(Clock):
    late = 0.008


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self, clock):
        super().__init__(clock)
        self._clock = clock

    def time(self):
        return self._clock.now


def in_virtual_time(awaitable, clock=Clock):
    with asyncio.Runner(loop_factory=lambda: VirtualLoop(clock())) as runner:
        return runner.run(awaitable)


def now():
    return asyncio.get_running_loop().time()


class Bucket:
    """`rate` tokens a second, at most one second's."""

    def __init__(self, rate):
        self.rate = self.tokens = rate
        self.filled = 0.0

    def wait(self):
        """Seconds until a request is taken, 0 when this one is."""
        self.tokens = min(self.rate, self.tokens + (now() - self.filled) * self.rate)
        self.filled = now()
        if self.tokens < 1:
            return (1 - self.tokens) / self.rate
        self.tokens -= 1
        return 0


class SmallBucket(Bucket):
    """As much a second, but no more than a tenth of it at once."""

    def wait(self):
        self.tokens = min(self.tokens, self.rate / 10 - (now() - self.filled) * self.rate)
        return super().wait()


class FixedWindows:
    """`rate` requests in each second of the gateway's clock, which is not ours."""

    def __init__(self, rate):
        self.rate, self.window, self.taken = rate, -1, 0

    def wait(self):
        ours = now() + 0.37
        if math.floor(ours) != self.window:
            self.window, self.taken = math.floor(ours), 0
        if self.taken >= self.rate:
            return self.window + 1 - ours
        self.taken += 1
        return 0


class SlidingWindow:
    """`rate` requests in any second."""

    def __init__(self, rate):
        self.rate, self.taken = rate, deque()

    def wait(self):
        while self.taken and self.taken[0] <= now() - 1:
            self.taken.popleft()
        if len(self.taken) >= self.rate:
            return self.taken[-int(self.rate)] + 1 - now()
        self.taken.append(now())
        return 0


class Free:
    """No limit, but `noise` of the answers are 429 all the same."""

    def __init__(self, noise=0.0, seed=1):
        self.noise, self.random = noise, random.Random(seed)  # noqa: S311 - noise, not a secret

    def wait(self):
        return 0.4 if self.random.random() < self.noise else 0


RETRY_AFTER = {
    "none": lambda _wait: None,
    "seconds": lambda wait: float(math.ceil(wait)),
    "date": lambda wait: math.ceil(now() + wait) - now(),
}


class Jelou:
    """What arrives, what is refused, and whether anything arrived before it was asked to."""

    def __init__(self, limiter, retry_after="none"):
        self.limiter, self.retry_after = limiter, RETRY_AFTER[retry_after]
        self.accepted = self.refused = self.early = 0
        self.not_before = 0.0
        self.changes = {}

    async def ask(self, pace):
        """One request until it is accepted; as the gateway's client it waits for its own pauses."""
        own, shortest = 0.0, 0.05
        while True:
            await asyncio.sleep(own)
            with await pace.turn() as turn:
                self.early += now() < self.not_before - 1e-6
                await asyncio.sleep(LATENCY / 2)
                wait = self.limiter.wait()
                pause = self.retry_after(wait) if wait else None
                self._count(accepted=not wait)
                await asyncio.sleep(LATENCY / 2)
                if not wait:
                    turn.accepted()
                    return
                own, shortest = pause or shortest, 2 * shortest
                self.not_before = max(self.not_before, now() + (pause or 0))
                turn.refused(pause)

    async def run(self, pace, requests, at_once):
        """All of them; returns the seconds it took."""
        began, todo = now(), iter(range(requests))

        async def work():
            for _ in todo:
                await self.ask(pace)

        await asyncio.gather(*(work() for _ in range(at_once)))
        return now() - began

    def _count(self, *, accepted):
        self.accepted += accepted
        self.refused += not accepted
        if accepted and (change := self.changes.pop(self.accepted, None)):
            self.limiter.rate *= change

    @property
    def share_refused(self):
        return self.refused / (self.refused + self.accepted)


def limited(limiter, rate, change=1, retry_after="none", seconds=60, at_once=128):
    """Time taken over the time the limit allows, and the gateway."""
    jelou = Jelou(limiter(rate), retry_after)
    requests = seconds * rate
    jelou.changes[requests // 2] = change
    took = in_virtual_time(jelou.run(Pace(), requests, at_once))
    return took / (seconds / 2 + seconds / 2 / change), jelou


LIMITERS = [Bucket, FixedWindows, SlidingWindow]


# A look for more costs a pause, so few are made: a doubled limit is found late. In longer runs less is lost by it.
FOUND_LATE = {
    (20, 2, "none", FixedWindows): 1.25,
    (20, 2, "seconds", FixedWindows): 1.22,
    (20, 2, "seconds", SlidingWindow): 1.2,
    (20, 2, "date", FixedWindows): 1.23,
    (100, 2, "seconds", FixedWindows): 1.27,
    (100, 2, "date", SlidingWindow): 1.25,
}


@pytest.mark.parametrize("limiter", LIMITERS)
@pytest.mark.parametrize("retry_after", RETRY_AFTER)
@pytest.mark.parametrize("change", [1, 0.5, 2])
@pytest.mark.parametrize("rate", [20, 100])
def test_an_unknown_limit_is_found_and_used_and_every_pause_taken_in_full(rate, change, retry_after, limiter):
    ratio, jelou = limited(limiter, rate, change, retry_after)

    assert jelou.early == 0
    assert ratio < FOUND_LATE.get((rate, change, retry_after, limiter), 1.15)
    # What a bucket has saved makes it look larger than it is after a change; in longer runs that is too little to see.
    assert jelou.share_refused < (0.034 if limiter is Bucket and change != 1 else 0.03)


def test_what_two_windows_took_in_one_round_is_not_believed_again_and_again():
    ratio, jelou = limited(FixedWindows, 20, retry_after="date", seconds=600)

    assert ratio < 1.15
    assert jelou.share_refused < 0.03


@pytest.mark.parametrize("limiter", LIMITERS)
@pytest.mark.parametrize("retry_after", ["none", "seconds"])
def test_a_high_limit_too(retry_after, limiter):
    ratio, jelou = limited(limiter, 500, retry_after=retry_after)

    assert jelou.early == 0
    assert ratio < 1.15
    assert jelou.share_refused < 0.03


@pytest.mark.parametrize("retry_after", RETRY_AFTER)
def test_a_limit_that_allows_no_bursts_is_found_slowly_but_used(retry_after):
    ratio, jelou = limited(SmallBucket, 500, retry_after=retry_after)

    assert jelou.early == 0
    assert ratio < 2.3
    assert jelou.share_refused < 0.08


def test_without_a_limit_only_the_beginning_takes_time():
    requests = 10_000 * 4

    took = in_virtual_time(Jelou(Free()).run(Pace(), requests, 128))

    assert took < requests * LATENCY / 128 + 0.4


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("at_once", [32, 128])
@pytest.mark.parametrize(("noise", "bound"), [(0.01, 1.5), (0.03, 2)])
def test_refusals_that_do_not_follow_the_rate_leave_it_alone(noise, bound, at_once, seed):
    requests = 20_000
    jelou = Jelou(Free(noise, seed))

    took = in_virtual_time(jelou.run(Pace(), requests, at_once))

    assert took < bound * requests * LATENCY / at_once
    assert jelou.refused > 0.9 * noise * requests


@pytest.mark.parametrize("noise", [0.01, 0.03])
def test_their_pauses_hold_back_the_others_only_in_the_beginning(noise):
    requests = 20_000
    jelou = Jelou(Free(noise), "seconds")

    took = in_virtual_time(jelou.run(Pace(), requests, 128))

    assert took < requests * LATENCY / 128 + 15


@pytest.mark.parametrize("clock", [Clock, LateClock])
def test_the_bound_is_kept_exactly_also_when_timers_are_late(clock):
    async def leave():
        pace, jelou = Pace(400), Jelou(Free())
        await jelou.run(pace, 1_000, 64)
        return await jelou.run(pace, 12_000, 64)

    assert in_virtual_time(leave(), clock) == pytest.approx(30, rel=0.005)


def test_the_bound_allows_no_burst_after_an_idle_time():
    async def leave():
        pace = Pace(100)
        await asyncio.sleep(60)
        left = []
        for _ in range(50):
            await pace.turn()
            left.append(now())
        return [moment - left[0] for moment in left]

    left = in_virtual_time(leave())

    assert sum(moment < 0.001 for moment in left) <= 6
    assert left[-1] > 0.42


def test_the_bound_may_change_while_requests_leave():
    async def leave():
        pace = Pace(10)
        await Jelou(Free()).run(pace, 50, 8)
        pace.per_second = 100
        return await Jelou(Free()).run(pace, 500, 32)

    assert in_virtual_time(leave()) == pytest.approx(5, rel=0.05)


async def in_flight(pace, count):
    return [(await pace.turn()).__enter__() for _ in range(count)]


def back(turn, answer="accepted", *said):
    getattr(turn, answer)(*said)
    turn.__exit__(None, None, None)


async def left_until(pace, seconds, count=50):
    """When requests left that nobody answers."""
    left = []

    async def leave():
        (await pace.turn()).__enter__()
        left.append(now())

    waiting = [asyncio.create_task(leave()) for _ in range(count)]
    await asyncio.sleep(seconds)
    for each in waiting:
        each.cancel()
    return left


def test_twenty_pauses_of_one_second_are_one_second():
    async def refuse():
        pace = Pace()
        for turn in await in_flight(pace, 16):
            back(turn)
        for turn in await in_flight(pace, 4):
            back(turn, "refused", 1.0)
        return await left_until(pace, 1.5)

    assert in_virtual_time(refuse())[0] == pytest.approx(1.0)


def test_a_longer_pause_of_a_later_answer_is_kept_too():
    async def refuse():
        pace = Pace()
        first, second = await in_flight(pace, 2)
        back(first, "refused", 1.0)
        await asyncio.sleep(0.5)
        back(second, "refused", 2.0)
        return await left_until(pace, 3)

    assert in_virtual_time(refuse())[0] == pytest.approx(2.5)


def test_a_pause_told_after_the_others_were_given_up_waiting_for_is_kept_too():
    async def refuse():
        pace = Pace()
        first, second = await in_flight(pace, 2)
        back(first, "refused", 0.1)
        await left_until(pace, 1.01, 1)
        back(second, "refused", 2.0)
        return now(), await left_until(pace, 3)

    told, left = in_virtual_time(refuse())

    assert left[0] >= told + 2


def test_requests_refused_together_are_one_cut():
    async def limits():
        pace = Pace()
        for turn in await in_flight(pace, 16):
            back(turn)
        for turn in await in_flight(pace, 4):
            back(turn, "refused")
        return pace._limit, pace._refused_in_a_row

    assert in_virtual_time(limits()) == (16, 1)


def test_nothing_leaves_while_the_answers_to_others_tell_whether_it_was_the_rate():
    async def refuse():
        pace = Pace()
        first, *others = await in_flight(pace, 16)
        back(first, "refused")
        before = len(await left_until(pace, 0.5))
        for turn in others:
            back(turn)
        return before, len(await left_until(pace, 0.5))

    before, after = in_virtual_time(refuse())

    assert before == 0
    assert after > 0


def test_after_a_pause_one_request_goes_ahead_and_the_others_follow_when_it_is_accepted():
    async def refuse():
        pace = Pace()
        (turn,) = await in_flight(pace, 1)
        back(turn, "refused", 1.0)
        (trial,) = await in_flight(pace, 1)
        others = asyncio.create_task(left_until(pace, 1))
        await asyncio.sleep(0.9)
        back(trial)
        accepted = now()
        return accepted, await others

    accepted, left = in_virtual_time(refuse())

    assert left
    assert left[0] >= accepted


def test_a_request_that_is_never_answered_does_not_keep_the_others():
    async def refuse():
        pace = Pace()
        (turn,) = await in_flight(pace, 1)
        back(turn, "refused", 1.0)
        await in_flight(pace, 1)
        return await left_until(pace, 5)

    assert len(in_virtual_time(refuse())) >= 3


def test_an_error_gives_its_place_free():
    async def fail():
        pace = Pace()
        for _ in range(100):
            with pytest.raises(ConnectionError), await pace.turn():
                raise ConnectionError
        return now()

    assert in_virtual_time(fail()) == 0


def test_an_overloaded_gateway_gets_its_pause_and_then_few_at_once_at_the_former_rate():
    async def overload():
        pace, jelou = Pace(), Jelou(Free())
        await jelou.run(pace, 1_000, 64)
        for turn in await in_flight(pace, 20):
            back(turn, "overloaded", 2.0)
        began = now()
        trial = await in_flight(pace, 1)
        waited = now() - began
        back(trial[0])
        at_once = len(await left_until(pace, 0.5))
        return waited, at_once, pace._limit

    waited, at_once, limit = in_virtual_time(overload())

    assert waited == pytest.approx(2.0)
    assert 1 <= at_once <= 9
    assert limit == math.inf


def test_a_gateway_that_refuses_everything_gets_one_request_a_pause_and_the_callers_an_error_in_the_end():
    class Closed:
        def wait(self):
            return 1.0

    async def refuse():
        pace, jelou = Pace(), Jelou(Closed())
        errors = await asyncio.gather(*(jelou.ask(pace) for _ in range(64)), return_exceptions=True)
        return errors, now(), jelou.refused

    errors, took, refused = in_virtual_time(refuse())

    assert {type(error) for error in errors} == {Throttled}
    assert 120 < took < 150
    # The first 16, and then at 0.05, 0.1, 0.2 ... 12.8 seconds.
    assert refused < 40


def test_refusals_long_apart_are_no_gateway_that_refuses_everything():
    async def refuse():
        pace = Pace()
        for _ in range(3):
            (turn,) = await in_flight(pace, 1)
            back(turn, "refused")
            (trial,) = await in_flight(pace, 1)
            back(trial)
            await asyncio.sleep(100)

    in_virtual_time(refuse())


def test_a_single_refusal_while_little_is_sent_says_nothing_about_the_limit():
    async def refuse():
        pace = Pace()
        await Jelou(Bucket(100)).run(pace, 1_000, 32)
        limit = pace._limit
        await asyncio.sleep(1)
        (turn,) = await in_flight(pace, 1)
        back(turn, "refused")
        return pace._limit / limit

    assert in_virtual_time(refuse()) == 1


def test_a_refusal_right_after_another_is_measured_and_not_taken_for_a_lower_limit():
    async def refuse():
        pace = Pace()
        await Jelou(Bucket(40)).run(pace, 1_000, 32)
        limit = pace._limit
        for _ in range(2):
            (turn,) = await in_flight(pace, 1)
            back(turn, "refused")
            await Jelou(Free()).run(pace, 4, 1)
        return pace._limit / limit

    assert in_virtual_time(refuse()) > 0.8


def test_a_gateway_that_opens_again_is_used_again():
    class Closed(Bucket):
        def wait(self):
            return 1.0 if now() < 60 else super().wait()

    async def refuse():
        return await Jelou(Closed(100)).run(Pace(), 3_000, 32)

    assert in_virtual_time(refuse()) < 60 + 13 + 1.15 * 30
