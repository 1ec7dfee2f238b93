"""When the simulated server's tokens come: the part that a model of a real engine replaces.

A behaviour is asked for the tokens of a call and gives them as they become ready. It knows
queues, slots and time; it knows nothing of HTTP, of error rates or of faults.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from typing import Protocol

from streams.simulator.call import Call
from streams.simulator.conduct import Conduct, Latency


class RefusedError(Exception):
    """The server takes no more calls now; the caller may come back after retry_after_s."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Behaviour(Protocol):
    """One engine: its slots, its queue, its clock."""

    @property
    def instant(self) -> bool:
        """True while every call can be answered at once, without asking for its tokens."""
        ...

    def tokens(self, call: Call) -> AsyncGenerator[int, None]:
        """Yields how many tokens became ready, each time some did, until all of them have.

        Raises RefusedError before the first. Closing the generator gives the slot back.
        """
        ...

    def gauges(self) -> Mapping[str, float]:
        """What the engine would show as metrics; at least `running` and `waiting`."""
        ...

    def retire(self) -> None:
        """Another conduct takes over: no new calls come, and what hangs goes on."""
        ...


class Door:
    """What every call passes before an engine has it: the rate limit, and a hang."""

    def __init__(self, conduct: Conduct) -> None:
        self._conduct = conduct
        self._unhung = asyncio.Event()
        self._tokens = float(conduct.burst)
        self._filled_at = time.monotonic()

    async def enter(self) -> None:
        """Waits while the server hangs. Raises RefusedError above the rate limit."""
        self.check_rate()
        await self.hang()

    def check_rate(self) -> None:
        """A token bucket: rate_limit a second, burst at once. Raises RefusedError."""
        if not self._conduct.rate_limit:
            return
        now = time.monotonic()
        gained = (now - self._filled_at) * self._conduct.rate_limit
        self._tokens = min(float(self._conduct.burst), self._tokens + gained)
        self._filled_at = now
        if self._tokens < 1:
            raise RefusedError("Rate limit reached.", self._conduct.retry_after_s)
        self._tokens -= 1

    async def hang(self) -> None:
        """Waits until the hang is switched off, if there is one."""
        if self._conduct.hang:
            await self._unhung.wait()

    def retire(self) -> None:
        """Lets those go on that hang."""
        self._unhung.set()


class LatencyBehaviour:
    """Independent calls: each has a latency drawn on its own, and some number of slots."""

    def __init__(self, conduct: Conduct, seed: int) -> None:
        self._conduct = conduct
        self._seed = seed
        self._latency = Latency.parse(conduct.latency)
        self._running = 0
        self._queue: deque[asyncio.Future[None]] = deque()
        self._door = Door(conduct)
        timed = not self._latency.is_zero or conduct.token_time_s > 0
        self._instant = not (timed or conduct.slots or conduct.rate_limit or conduct.hang)

    @property
    def instant(self) -> bool:
        """Nothing to wait for: no latency, slots, rate limit or hang."""
        return self._instant

    async def tokens(self, call: Call) -> AsyncGenerator[int, None]:
        """See Behaviour."""
        self._door.check_rate()
        await self._take_slot()
        try:
            await self._door.hang()
            delay = self._latency.draw(call.chance(self._seed, "latency"))
            if delay > 0:
                await asyncio.sleep(delay)
            if self._conduct.token_time_s <= 0:
                yield call.completion_tokens
                return
            yield min(1, call.completion_tokens)
            for _ in range(call.completion_tokens - 1):
                await asyncio.sleep(self._conduct.token_time_s)
                yield 1
        finally:
            self._give_slot()

    def gauges(self) -> Mapping[str, float]:
        """See Behaviour."""
        return {"running": self._running, "waiting": len(self._queue)}

    def retire(self) -> None:
        """See Behaviour."""
        self._door.retire()

    async def _take_slot(self) -> None:
        if not self._conduct.slots or self._running < self._conduct.slots:
            self._running += 1
            return
        if len(self._queue) >= self._conduct.queue:
            raise RefusedError("All slots are taken.", self._conduct.retry_after_s)
        turn = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._give_slot()
            elif turn in self._queue:
                self._queue.remove(turn)
            raise

    def _give_slot(self) -> None:
        """Passes the slot on to the call that waits longest, if any."""
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._running -= 1
