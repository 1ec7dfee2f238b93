"""Runs the real-time calls of one upstream pool: so many at once, the others wait their turns."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from prometheus_client import Histogram

from schemas.records import RealtimePoolLoad
from streams.background import Broken
from streams.places import Places
from streams.realtime_worker.call import Call
from streams.realtime_worker.turns import Turns

#: Most samples of a kind in one load record; of more, a fair choice is kept.
MAX_SAMPLES = 128

Run = Callable[[Call], Awaitable[None]]
T = TypeVar("T")


class Samples(Generic[T]):
    """What was measured since it was last taken."""

    def __init__(self) -> None:
        self._kept: list[T] = []
        self._seen = 0

    def add(self, sample: T) -> None:
        """Notes one."""
        self._seen += 1
        if len(self._kept) < MAX_SAMPLES:
            self._kept.append(sample)
        elif (place := random.randrange(self._seen)) < MAX_SAMPLES:
            self._kept[place] = sample

    def take(self) -> tuple[T, ...]:
        """Those noted; from now on none are."""
        taken, self._kept, self._seen = tuple(self._kept), [], 0
        return taken


class Pool:
    """The limiter of one pool, and what was measured there."""

    def __init__(
        self,
        name: str,
        max_in_flight: int,
        run: Run,
        ttft: Histogram,
        changed: Callable[[], None],
        broken: Broken,
    ) -> None:
        """run: runs one call. changed: called when its load is different. broken: hears of what
        `run` raises, a bug."""
        self.name = name
        self._changed = changed
        #: Streams whose first event has not come yet.
        self._awaiting: set[Call] = set()
        self._itl_us: Samples[int] = Samples()
        self._gaps = self._gaps_us = 0
        #: (when the call was sent, how long its first token took): Unix ms, microseconds.
        self._ttft: Samples[tuple[int, int]] = Samples()
        self._ttft_shown = ttft
        self._max_in_flight = max_in_flight
        self._waiting = Turns()
        self._running = Places(run, self._fill, broken)

    @property
    def in_flight(self) -> int:
        """Calls that run now."""
        return len(self._running)

    @property
    def waiting_since_ms(self) -> int | None:
        """When the gateway sent what waits here longest; None if nothing waits."""
        return self._waiting.oldest_ms

    def asked(self, call: Call) -> None:
        """A call was sent; if it is a stream, its first event is waited for."""
        if call.request.stream:
            self._awaiting.add(call)
            self._changed()

    def answered(self, call: Call) -> None:
        """Nothing is waited for any more: its first event came, or none will."""
        if call in self._awaiting:
            self._awaiting.remove(call)
            self._changed()

    def first_token(self, sent_ms: int, after_s: float) -> None:
        """A stream's first event came so long after its request was sent."""
        self._ttft.add((sent_ms, _microseconds(after_s)))
        self._ttft_shown.observe(after_s)

    def gap(self, seconds: float) -> None:
        """So much time lay between two arrivals of events within one answer."""
        gap_us = _microseconds(seconds)
        self._itl_us.add(gap_us)
        self._gaps += 1
        self._gaps_us += gap_us

    def add(self, call: Call) -> None:
        """Takes a call; it runs as soon as there is a place."""
        self._waiting.add(call)
        self._fill()

    def cancel(self, call: Call) -> None:
        """Cuts it if it runs; if it waits, it is forgotten."""
        if not self._running.cut(call):
            self._waiting.remove(call)

    def load(self) -> RealtimePoolLoad:
        """The load now, and the samples since the last time it was asked for."""
        ttft = self._ttft.take()
        load = RealtimePoolLoad(
            pool=self.name,
            in_flight=len(self._running),
            waiting=len(self._waiting),
            ttft_us=tuple(ttft_us for _, ttft_us in ttft),
            ttft_sent_ms=tuple(sent_ms for sent_ms, _ in ttft),
            itl_us=self._itl_us.take(),
            gaps=self._gaps,
            gaps_us=self._gaps_us,
            awaiting=len(self._awaiting),
        )
        self._gaps = self._gaps_us = 0
        return load

    async def drain(self, budget_s: float) -> None:
        """Starts no call any more, and gives those that run so long; then they are cut."""
        self._max_in_flight = 0
        await self._running.drain(budget_s)

    def _fill(self) -> None:
        while self._waiting and len(self._running) < self._max_in_flight:
            self._running.start(self._waiting.take())


def _microseconds(seconds: float) -> int:
    # Never zero: a time that was measured is one, and readers take zero for a lie.
    return max(1, round(seconds * 1_000_000))
