"""Runs the real-time calls of one upstream pool: so many at once, the others wait in order."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable

from prometheus_client import Histogram

from schemas.records import RealtimePoolLoad
from streams.background import Broken
from streams.realtime_worker.call import Call

#: Most samples of a kind in one load record; of more, a fair choice is kept.
MAX_SAMPLES = 128

Run = Callable[[Call], Awaitable[None]]


class Samples:
    """Times that were measured since they were last taken."""

    def __init__(self) -> None:
        self._kept: list[int] = []
        self._seen = 0

    def add(self, seconds: float) -> None:
        """Notes one."""
        self._seen += 1
        value = max(0, round(seconds * 1_000_000))
        if len(self._kept) < MAX_SAMPLES:
            self._kept.append(value)
        elif (place := random.randrange(self._seen)) < MAX_SAMPLES:
            self._kept[place] = value

    def take(self) -> tuple[int, ...]:
        """Those noted, in microseconds; from now on none are."""
        taken, self._kept, self._seen = tuple(self._kept), [], 0
        return taken


class Pool:
    """The limiter of one pool, and what was measured there."""

    def __init__(
        self, name: str, max_in_flight: int, run: Run, ttft: Histogram, broken: Broken
    ) -> None:
        """run: runs one call. broken: hears of what it raises, a bug."""
        self.name = name
        self.itl = Samples()
        self._ttft = Samples()
        self._ttft_shown = ttft
        self._max_in_flight = max_in_flight
        self._run = run
        self._broken = broken
        self._waiting: deque[Call] = deque()
        self._running: dict[Call, asyncio.Task[None]] = {}

    @property
    def in_flight(self) -> int:
        """Calls that run now."""
        return len(self._running)

    @property
    def waiting_since_ms(self) -> int | None:
        """When the gateway sent what waits here longest; None if nothing waits."""
        return self._waiting[0].request.at_ms if self._waiting else None

    def first_token(self, after_s: float) -> None:
        """A stream's first event came so long after its request was sent."""
        self._ttft.add(after_s)
        self._ttft_shown.observe(after_s)

    def add(self, call: Call) -> None:
        """Takes a call; it runs as soon as there is a place."""
        self._waiting.append(call)
        self._fill()

    def cancel(self, call: Call) -> None:
        """Cuts it if it runs; if it waits, it is forgotten."""
        task = self._running.get(call)
        if task is not None:
            task.cancel()
        elif call in self._waiting:
            self._waiting.remove(call)

    def load(self) -> RealtimePoolLoad:
        """The load now, and the samples since the last time it was asked for."""
        return RealtimePoolLoad(
            pool=self.name,
            in_flight=len(self._running),
            waiting=len(self._waiting),
            ttft_us=self._ttft.take(),
            itl_us=self.itl.take(),
        )

    async def drain(self, budget_s: float) -> None:
        """Starts no call any more, and gives those that run so long; then they are cut."""
        self._max_in_flight = 0
        tasks = list(self._running.values())
        if not tasks:
            return
        _done, late = await asyncio.wait(tasks, timeout=budget_s)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    def _fill(self) -> None:
        while self._waiting and len(self._running) < self._max_in_flight:
            call = self._waiting.popleft()
            self._running[call] = asyncio.create_task(self._one(call))

    async def _one(self, call: Call) -> None:
        try:
            await self._run(call)
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not pass unheard
            self._broken(error)
        finally:
            del self._running[call]
            self._fill()
