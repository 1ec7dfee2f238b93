"""The batch-worker's heart: slices in, outcomes out, and what may happen to them in between.

    take ──► ended? past its window? pool unknown? ──► pool (waits, runs) ──► publisher ──► finish
                                                        ▲
                       templates' pool (renders) ───────┘ a place

Nothing here waits for an upstream: a line waits in its pool, so that one upstream that hangs
holds up neither another nor the reading of line.ready.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial

from schemas.records import BatchSnapshot, Outcome, OutcomeKind, ReadyLines
from streams.background import Broken
from streams.batch_worker.caller import Caller
from streams.batch_worker.ended import EndedBatches
from streams.batch_worker.line import Held, Line
from streams.batch_worker.moved import MovedWindows
from streams.batch_worker.pool import Pool
from streams.batch_worker.publisher import OutcomePublisher, Send
from streams.domain.clock import Clock
from streams.domain.failures import FailureReason
from streams.domain.outcome.retry import RetryPolicy, pause_s
from streams.domain.upstreams import UpstreamTable, templates_pool

#: How long the broker has to take the last outcomes when the worker stops.
_SEND_BUDGET_S = 5.0
#: A line of a pool that this worker doesn't have goes back to the dispatcher, without end.
_ASTRAY = RetryPolicy(max_attempts=1)

Enter = AbstractAsyncContextManager[None]


class Worker:
    """Everything between reading a slice and acking it."""

    def __init__(
        self,
        name: str,
        table: UpstreamTable,
        callers: Mapping[str, Caller],
        send: Send,
        clock: Clock,
        changed: Callable[[], None],
        broken: Broken,
    ) -> None:
        """callers: by upstream. changed: called when what the load says is different."""
        self._clock = clock
        self._changed = changed
        self._held = Held()
        self._ended = EndedBatches()
        self._moved = MovedWindows()
        self._publisher = OutcomePublisher(name, send, self._finish, clock, broken)
        self._stopping = False
        self.pools: dict[str, Pool] = {}
        for pool in table.pools.values():
            caller, most = callers[pool.upstream], pool.max_in_flight
            calls = Pool(pool.name, most, self._runner(caller, pool.name), clock, broken)
            name = templates_pool(pool.name)
            run = self._runner(caller, pool.name, calls.place)
            renders = Pool(name, most, run, clock, broken)
            self.pools |= {calls.name: calls, renders.name: renders}

    def take(self, ready: ReadyLines, partition: int, finished: Callable[[], None]) -> None:
        """Takes a slice. `finished` is called when every outcome of it is at the broker.

        A slice taken while stopping is left unfinished, for the worker that comes after.
        """
        if self._stopping:
            return
        if ready.batch_id in self._ended:
            finished()
            return
        pool = self.pools.get(ready.pool)
        for line in self._held.take(self._moved.applied(ready), partition, finished):
            if pool is None:
                self._answered(line, _astray(line, self._clock.now_ms()))
            else:
                pool.add(line)
        self._changed()

    def runs(self, snapshot: BatchSnapshot) -> None:
        """The batch runs: its lines may begin until the end that its window has by now."""
        if self._moved.note(snapshot):
            for line in self._held.of(snapshot.batch_id):
                line.ready = self._moved.applied(line.ready)

    def end(self, batch_id: str) -> None:
        """The batch has ended: its lines are dropped, and its calls cut."""
        if not self._ended.add(batch_id):
            return
        self._moved.forget(batch_id)
        lines = self._held.of(batch_id)
        for line in lines:
            line.dropped = True
        for pool in {
            self.pools[line.ready.pool] for line in lines if line.ready.pool in self.pools
        }:
            # What has an outcome on its way to the broker is finished there.
            for line in pool.drop(lambda line: line.dropped):
                self._finish(line)

    def revoked(self, partitions: Iterable[int]) -> None:
        """These partitions are another's now: what has not begun must not begin here."""
        self._held.revoke(partitions)
        for pool in self.pools.values():
            for line in pool.withdraw(lambda line: not line.live):
                self._forget(pool, line)
        self._changed()

    async def stop(self, budget_s: float) -> None:
        """Starts nothing more, and gives what runs so long to be answered and sent."""
        self._stopping = True
        for pool in self.pools.values():
            for line in pool.close():
                self._forget(pool, line)
        await asyncio.gather(*(pool.drain(budget_s) for pool in self.pools.values()))
        await self._publisher.drain(_SEND_BUDGET_S)

    def _runner(
        self, caller: Caller, name: str, place: Callable[..., Enter] | None = None
    ) -> Callable[[Line], Awaitable[None]]:
        """name: the pool whose calls these are. place: a place there, for lines of another."""

        async def run(line: Line) -> None:
            calls = self.pools[name].calls
            enter = None if place is None else partial(place, first=line.cuts > 0)
            try:
                outcome = await caller.attempt(line, calls, enter)
            except asyncio.CancelledError:
                if not line.cut or line.dropped:
                    raise
                self._wait_again(line)
                return
            if line.dropped:
                return
            if outcome is not None:
                self._answered(line, outcome)
            elif line.live:
                self._finish(line)
            else:
                self._forget(self.pools[line.ready.pool], line)
                self._changed()

        return run

    def _wait_again(self, line: Line) -> None:
        """Its call was cut for real-time calls. It is held as before: this was no attempt."""
        line.cut = False
        pool = self.pools[line.ready.pool]
        if self._stopping or not line.live:
            self._forget(pool, line)
        else:
            pool.again(line)
        self._changed()

    def _answered(self, line: Line, outcome: Outcome) -> None:
        self._held.answered(line)
        self._publisher.add(line, outcome)

    def _finish(self, line: Line) -> None:
        self._held.finish(line)
        pool = self.pools.get(line.ready.pool)
        if pool is not None:
            pool.release()
        self._changed()

    def _forget(self, pool: Pool, line: Line) -> None:
        self._held.forget(line)
        pool.release()


def _astray(line: Line, now_ms: int) -> Outcome:
    pause = pause_s(_ASTRAY, line.item.attempt, None, random.random)
    return Outcome(
        line=line.item.line,
        attempt=line.item.attempt,
        kind=OutcomeKind.RETRY,
        retry_at_ms=now_ms + round(pause * 1000),
        reason=FailureReason.UNREACHABLE.value,
    )
