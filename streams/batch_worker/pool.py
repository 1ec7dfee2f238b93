"""Runs the lines of one upstream pool: so many at once, the others wait here and nowhere else.

Lines whose prompt only the sandbox can render are another pool's, which has no upstream: when
they are rendered they come here as guests, and take their turn like any other line.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from streams.background import Broken
from streams.batch_worker.calls import Calls
from streams.batch_worker.line import Line
from streams.domain.clock import Clock
from streams.places import Places

#: How long a freed credit takes to come back as a line: load published, line released and read.
HOP_S = 0.2
#: Lines waiting here beyond those that run: what the pool finishes within a hop, within bounds.
MIN_PREFETCH, MAX_PREFETCH = 8, 1024
#: Over how long the rate of finished lines is averaged.
_RATE_WINDOW_S = 0.5

Run = Callable[[Line], Awaitable[None]]


class _Guest(asyncio.Future[None]):
    """A line of another pool that waits for a place; done when it has one."""


class Pool:
    """The limiter of one pool. `run` runs one line; `broken` hears of what it raises, a bug."""

    def __init__(
        self, name: str, max_in_flight: int, run: Run, clock: Clock, broken: Broken
    ) -> None:
        self.name = name
        #: Lines held for this pool: waiting, running, or with an outcome not yet at the broker.
        self.held = 0
        #: Its calls that are at the upstream; none of a pool that has no upstream.
        self.calls = Calls(clock)
        #: Its part of what the gate lets all workers have in flight, and why; -1: no gate.
        self.part, self.reason = -1, ""
        self._max_in_flight = max_in_flight
        self._clock = clock
        self._waiting: deque[Line | _Guest] = deque()
        self._running = Places(run, self._fill, broken)
        self._guests = 0
        self._closed = False
        #: Between two starts, and when the last was that had to keep to it.
        self._gap_s = 0.0
        self._started_s = -math.inf
        self._later: asyncio.TimerHandle | None = None
        self._rate = 0.0
        self._finished = 0
        self._rated_at = clock.monotonic_s()

    @property
    def running(self) -> int:
        """How many calls run now."""
        return len(self._running) + self._guests

    @property
    def wants(self) -> int:
        """How many lines it would run now, were there no gate."""
        return min(self._max_in_flight, self.running + len(self._waiting))

    def allow(self, part: int, reason: str) -> bool:
        """What the gate says from now on; whether that is news. What runs beyond it goes on."""
        if (part, reason) == (self.part, self.reason):
            return False
        self.part, self.reason = part, reason
        self._fill()
        return True

    def pace(self, gap_s: float, turn: float = 0.0) -> None:
        """Lines start so far apart from now on, at least; infinite: none starts.

        turn: part of a gap that goes by before the first start after a time without one, so that
        workers that hear the same at the same moment don't start at the same moment.
        """
        if gap_s != self._gap_s:
            if self._gap_s in (0.0, math.inf) and gap_s != math.inf:
                now_s = self._clock.monotonic_s()
                self._started_s = max(self._started_s, now_s - gap_s * (1 - turn))
            self._gap_s = gap_s
            if self._later is not None:
                self._later.cancel()
                self._later = None
            self._fill()

    def credits(self) -> int:
        """How many lines this pool is willing to hold, by the rate at which it finishes them."""
        if self._closed or self._most == 0:
            return 0
        self._measure()
        prefetch = math.ceil(self._rate * HOP_S)
        return self._most + min(max(prefetch, MIN_PREFETCH), MAX_PREFETCH)

    def add(self, line: Line) -> None:
        """Takes a line; it runs as soon as there is room."""
        self.held += 1
        self._waiting.append(line)
        self._fill()

    def again(self, line: Line) -> None:
        """Takes back a line whose call was cut: it is the next to run."""
        self._waiting.appendleft(line)

    @asynccontextmanager
    async def place(self, *, first: bool = False) -> AsyncIterator[None]:
        """A place among the lines that run, for a line of another pool; first: the next one.

        Raises CancelledError once the pool is closed.
        """
        guest = _Guest()
        if self._closed:
            guest.cancel()
        if first:
            self._waiting.appendleft(guest)
        else:
            self._waiting.append(guest)
        self._fill()
        try:
            await guest
            yield
        finally:
            if guest.cancelled():
                with suppress(ValueError):
                    self._waiting.remove(guest)
            else:
                self._guests -= 1
                self._fill()

    def release(self) -> None:
        """A line that was held is not any more."""
        self.held -= 1
        self._finished += 1

    def withdraw(self, unwanted: Callable[[Line], bool]) -> list[Line]:
        """Takes out and returns the waiting lines that are not wanted any more."""
        out: list[Line] = []
        kept: deque[Line | _Guest] = deque()
        for line in self._waiting:
            if isinstance(line, Line) and unwanted(line):
                out.append(line)
            else:
                kept.append(line)
        self._waiting = kept
        return out

    def drop(self, unwanted: Callable[[Line], bool]) -> list[Line]:
        """withdraw(), and also cuts and returns those that run."""
        return self.withdraw(unwanted) + self._running.cut_all(unwanted)

    def close(self) -> list[Line]:
        """Starts nothing any more; returns the lines that were waiting."""
        self._closed = True
        for guest in self._waiting:
            if isinstance(guest, _Guest):
                guest.cancel()
        return self.withdraw(lambda _line: True)

    async def drain(self, budget_s: float) -> None:
        """Waits for running calls for so long, then cuts them."""
        await self._running.drain(budget_s)

    @property
    def _most(self) -> int:
        return self._max_in_flight if self.part < 0 else min(self.part, self._max_in_flight)

    def _fill(self) -> None:
        waiting, running = self._waiting, self._running
        if self._closed or not waiting:
            return
        room = self._most - len(running) - self._guests
        while room > 0 and waiting and (self._gap_s == 0 or self._is_time()):
            line = waiting.popleft()
            if isinstance(line, Line):
                running.start(line)
                room -= 1
            elif not line.done():
                self._guests += 1
                line.set_result(None)
                room -= 1

    def _is_time(self) -> bool:
        """Whether a line may start now; if only later, it is looked again then."""
        if self._gap_s == math.inf:
            return False
        now_s = self._clock.monotonic_s()
        wait_s = self._started_s + self._gap_s - now_s
        if wait_s <= 0:
            self._started_s = now_s
            return True
        if self._later is None:
            self._later = asyncio.get_running_loop().call_later(wait_s, self._look_again)
        return False

    def _look_again(self) -> None:
        self._later = None
        self._fill()

    def _measure(self) -> None:
        now = self._clock.monotonic_s()
        elapsed = now - self._rated_at
        if elapsed < 0.1 * _RATE_WINDOW_S:
            return
        share = min(elapsed / _RATE_WINDOW_S, 1.0)
        self._rate += (self._finished / elapsed - self._rate) * share
        self._finished, self._rated_at = 0, now
