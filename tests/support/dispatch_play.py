"""Dispatchers at work in made-up time: workers with slots and call times, and what came of it."""

from __future__ import annotations

import heapq
from collections import Counter, deque
from random import Random

from streams.domain.dispatch.dispatcher import Dispatcher
from streams.domain.dispatch.lane import OpenBatch
from streams.domain.dispatch.slice import Slice
from streams.domain.forecast.forecast import Forecaster, Outlook
from tests.support.workers import NOW, Bench, FakeWorker, lines_of

_STEP_MS = 50


class Server(FakeWorker):
    """A worker at one pool: so many calls at once, each of about call_s."""

    def __init__(self, name: str, pool: str, slots: int, call_s: float, partition: int) -> None:
        super().__init__(name, (partition,), {pool: 2 * slots})
        self.slots = slots
        self._call_s = call_s
        self._waiting: deque[tuple[Slice, int]] = deque()
        self._calls: list[tuple[float, int, Slice, int]] = []
        self._left: dict[Slice, int] = {}

    def holds(self, pool: str) -> int:
        """Lines, not slices: each makes room as soon as it is done."""
        return sum(self._left.values())

    def move(self, log: dict[int, list[Slice]], now: int, random: Random) -> list[tuple[str, int]]:
        """Ends and starts calls; the (batch, line) of those that ended."""
        done = []
        while self._calls and self._calls[0][0] <= now:
            _, _, slice_, line = heapq.heappop(self._calls)
            done.append((slice_.batch_id, line))
            self._left[slice_] -= 1
            if not self._left[slice_]:
                del self._left[slice_]
                self.finish(slice_)
        before = len(self.held)
        self.read(log)
        for slice_ in self.held[before:]:
            self._left[slice_] = slice_.size
            self._waiting.extend((slice_, line) for line in lines_of(slice_))
        while self._waiting and len(self._calls) < self.slots:
            slice_, line = self._waiting.popleft()
            ends = now + 1000 * self._call_s * random.uniform(0.6, 1.4)
            heapq.heappush(self._calls, (ends, random.getrandbits(40), slice_, line))
        return done


class Play:
    """Controllers that share servers. ended_at: milliseconds since the start, by batch."""

    def __init__(self, servers: list[Server], controllers: int = 1) -> None:
        self.benches = [Bench(Dispatcher(f"c{n}")) for n in range(controllers)]
        for bench in self.benches:
            bench.log = self.benches[0].log
        self.forecasters = [Forecaster(bench.dispatcher) for bench in self.benches]
        self.servers = servers
        self.random = Random(7)
        self.left: Counter[str] = Counter()
        self.home: dict[str, Bench] = {}
        self.ended_at: dict[str, int] = {}
        self.now = NOW

    @property
    def elapsed_s(self) -> float:
        return (self.now - NOW) / 1000

    def open(self, batch: OpenBatch, controller: int = 0) -> None:
        """Opens a batch at one of the controllers."""
        self.home[batch.batch_id] = self.benches[controller]
        self.left[batch.batch_id] = batch.total
        self.benches[controller].dispatcher.open(batch)

    def run(self, seconds: float) -> None:
        """Lets so much time pass."""
        until = self.now + int(seconds * 1000)
        while self.now < until:
            self._step()

    def run_to_the_end(self) -> None:
        """Until every line is in."""
        while any(self.left.values()):
            self._step()
            assert self.elapsed_s < 50_000, "it never ends"

    def outlooks(self) -> dict[str, Outlook]:
        """What is foreseen for every batch that is open, wherever it is."""
        return {o.batch_id: o for f in self.forecasters for o in f.outlooks({}, self.now)}

    def came_in(self, batch_id: str, line: int) -> None:
        """A line's outcome was folded."""
        dispatcher = self.home[batch_id].dispatcher
        dispatcher.settle(batch_id, [line], (), self.now)
        self.left[batch_id] -= 1
        if not self.left[batch_id]:
            self.ended_at[batch_id] = self.now - NOW
            dispatcher.close(batch_id)

    def _step(self) -> None:
        self.now += _STEP_MS
        for server in self.servers:
            for batch_id, line in server.move(self.benches[0].log, self.now, self.random):
                self.came_in(batch_id, line)
        for bench in self.benches:
            bench.now = self.now
            for server in self.servers:
                server.at_ms = self.now
                bench.hear(server)
        for number, bench in enumerate(self.benches):
            bench.release()
            for other in self.benches:
                other.dispatcher.controller_load(bench.dispatcher.load(self.now), self.now)
            if self.now % 1000 < _STEP_MS:
                self.forecasters[number].look(self.now)
