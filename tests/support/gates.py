"""Gates of one or more workers under a clock that is moved by hand, and a made-up engine."""

from __future__ import annotations

from typing import Any

from schemas.records import (
    PartitionSeen,
    PoolLoad,
    RealtimeLoad,
    RealtimePoolLoad,
    WorkerLoad,
)
from streams.batch_worker.gates import TICK_S, Gates
from streams.batch_worker.line import Line
from streams.batch_worker.pool import Pool
from streams.domain.clock import ManualClock
from streams.domain.upstreams import UpstreamTable, parse_upstreams, templates_pool

POOL = "u"
MOST = 16


def table(most: int = MOST, **yields: Any) -> UpstreamTable:
    """One upstream, that yields so."""
    upstream = {
        "name": POOL,
        "base_url": "http://127.0.0.1:1/v1",
        "models": ["*"],
        "max_in_flight": most,
        "yield": yields,
    }
    return parse_upstreams({"upstreams": [upstream]})


async def _no_run(_line: Line) -> None:
    raise AssertionError


def _broken(error: BaseException) -> None:
    raise error


class GatedWorker:
    """A batch-worker reduced to its pools and gates."""

    def __init__(
        self,
        name: str,
        upstreams: UpstreamTable,
        clock: ManualClock,
        past: tuple[RealtimeLoad, ...] | None = (),
    ) -> None:
        self.name = name
        self.clock = clock
        self.changes = 0
        self.pools = {
            pool_name: Pool(pool_name, pool.max_in_flight, _no_run, clock, _broken)
            for pool in upstreams.pools.values()
            for pool_name in (pool.name, templates_pool(pool.name))
        }
        self.gates = Gates(name, upstreams, self.pools, clock, self._changed)
        if past is not None:
            self.gates.remember(past)

    def _changed(self) -> None:
        self.changes += 1

    @property
    def pool(self) -> Pool:
        """The one whose lines have their bodies."""
        return self.pools[POOL]

    @property
    def part(self) -> int:
        """Calls that this worker may have in flight."""
        return self.pool.part

    @property
    def reason(self) -> str:
        """Why."""
        return self.pool.reason

    def load(self) -> WorkerLoad:
        """What the others hear of it; it is taken to use all that it may."""
        return WorkerLoad(
            worker=self.name,
            at_ms=self.clock.now_ms(),
            partitions=(PartitionSeen(partition=0, next_offset=0, committed=0),),
            pools=(PoolLoad(pool=POOL, credits=1, held=1, in_flight=self.part),),
        )


class Site:
    """Workers and one realtime-worker, whose load is heard on change and each second."""

    def __init__(self, workers: int = 1, most: int = MOST, **yields: Any) -> None:
        self.clock = ManualClock()
        self._most, self._yields = most, yields
        upstreams = table(most, **yields)
        self.workers = [GatedWorker(f"b{n}", upstreams, self.clock) for n in range(workers)]
        self._said: tuple[int, int] = (-1, 0)

    @property
    def worker(self) -> GatedWorker:
        """The first."""
        return self.workers[0]

    @property
    def total(self) -> int:
        """Calls that all may have in flight."""
        return sum(worker.part for worker in self.workers)

    def restart(self, past: tuple[RealtimeLoad, ...] | None) -> None:
        """All batch-workers start anew; past: what realtime-workers said last, None if that is
        not read yet."""
        upstreams = table(self._most, **self._yields)
        self.workers = [GatedWorker(w.name, upstreams, self.clock, past) for w in self.workers]

    def say(self, in_flight: int, **changes: Any) -> None:
        """The realtime-worker's load."""
        load = self.load(in_flight, **changes)
        for worker in self.workers:
            worker.gates.hear(load)

    def load(self, in_flight: int, **changes: Any) -> RealtimeLoad:
        """What the realtime-worker says."""
        ttft = (80_000,) if in_flight else ()
        pool = {
            "pool": POOL,
            "in_flight": in_flight,
            "ttft_us": ttft,
            "ttft_sent_ms": tuple(self.clock.ms - 100 for _ in ttft),
            "gaps": 3 * in_flight,
            "gaps_us": 30_000 * in_flight,
            **changes.pop("pool", {}),
        }
        fields: dict[str, Any] = {
            "worker": "r0",
            "process": "p",
            "at_ms": self.clock.ms,
            "in_flight": in_flight,
            "oldest_wait_ms": 0,
            **changes,
        }
        return RealtimeLoad(pools=(RealtimePoolLoad(waiting=0, itl_us=(), **pool),), **fields)

    def run(self, seconds: float, lane: int | None = None) -> None:
        """Time goes by; lane: real-time calls in flight, None for no realtime-worker."""
        for _ in range(round(seconds / TICK_S)):
            self.clock.advance(TICK_S)
            if lane is not None and (
                lane > 0 or lane != self._said[0] or self.clock.ms - self._said[1] >= 1000
            ):
                self.say(lane)
                self._said = (lane, self.clock.ms)
            loads = [worker.load() for worker in self.workers]
            for worker in self.workers:
                for load in loads:
                    worker.gates.hear(load)
                worker.gates.tick()
