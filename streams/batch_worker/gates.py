"""The gates of a worker: one for each pool that makes way for real-time calls.

    capacity ──► real-time loads ─┐
    lag of realtime.request ──────┼─► Gate ─► limit of all workers ─► FleetShare ─► this one's part
    the engine's page ────────────┘    ▲                                  ▲              │
    capacity ──► what is due ──────────┘      capacity ──► other workers ─┘              ▼
                                                                 Pool.allow, Calls.cut, WorkerLoad

All workers hear the same, so they compute about the same limit, and each takes its part of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import assert_never

import structlog

from schemas.records import ControllerLoad, RealtimeLoad, WorkerLoad
from streams.batch_worker.pool import Pool
from streams.batch_worker.pool_gate import PoolGate
from streams.batch_worker.signals.capacity import Load
from streams.domain.clock import Clock
from streams.domain.gate.signals import STALE_AFTER_S, EngineLoad, QueueLoad
from streams.domain.upstreams import UpstreamTable, templates_pool

log = structlog.get_logger(__name__)

#: How often the gates are asked, besides after each real-time load.
TICK_S = 0.1
#: A clock that was set back by more than this makes all that was learnt worthless.
_SET_BACK_S = 1.0
#: Between two readings of an engine; its page costs it some milliseconds.
_MIN_PAUSE_S, _MAX_PAUSE_S = 0.25, 0.75


class Gates:
    """All gates of a worker, and the time that they live by: Unix seconds that don't go back."""

    def __init__(
        self,
        worker: str,
        table: UpstreamTable,
        pools: Mapping[str, Pool],
        clock: Clock,
        changed: Callable[[], None],
    ) -> None:
        """changed: called when what the load says is different."""
        self._worker = worker
        self._table = table
        self._pools = pools
        self._clock = clock
        self._changed = changed
        self._now_s = clock.now_ms() / 1000
        #: How long the oldest real-time request waits, by realtime-worker.
        self._waits_s: dict[str, tuple[float, float]] = {}
        #: Realtime-workers' last words before this process began; None until they are known.
        self._past: tuple[RealtimeLoad, ...] | None = None
        self.by_pool: dict[str, PoolGate] = {}
        self._begin()

    def remember(self, past: Iterable[RealtimeLoad]) -> None:
        """What each realtime-worker said last before this process began; until then the floors
        hold, and also after it if one of them has not said goodbye, until one speaks."""
        self._past = tuple(past)
        for gate in self.by_pool.values():
            gate.remember(self._past, self._now())

    def hear(self, load: Load) -> None:
        """A process says how it does."""
        now_s = self._now()
        match load:
            case RealtimeLoad():
                self._waits_s[load.worker] = (now_s, load.oldest_wait_ms / 1000)
                for gate in self.by_pool.values():
                    gate.hear_realtime(load, now_s)
                self._ask(now_s)
            case WorkerLoad():
                if load.worker != self._worker:
                    for gate in self.by_pool.values():
                        gate.hear_worker(load, now_s)
            case ControllerLoad():
                for gate in self.by_pool.values():
                    gate.hear_due(load, now_s)
            case _:
                assert_never(load)

    def hear_lag(self, lag: int) -> None:
        """So many real-time requests wait in Kafka."""
        now_s = self._now()
        oldest_s = max(
            (w for at, w in self._waits_s.values() if now_s - at <= STALE_AFTER_S), default=0.0
        )
        for gate in self.by_pool.values():
            gate.hear(QueueLoad(now_s, lag, oldest_s), now_s)

    def hear_engine(self, pools: Iterable[str], load: EngineLoad) -> None:
        """The engine that runs these pools says how it does."""
        now_s = self._now()
        gates = [self.by_pool[name] for name in pools]
        for gate in gates:
            siblings = sum(g.in_flight for g in gates if g is not gate)
            gate.hear_engine(load, siblings, now_s)
        self._ask(now_s)

    def now_s(self) -> float:
        """The gates' time."""
        return self._now()

    def pause_s(self) -> float:
        """How long to wait between two readings of an engine, which all workers read."""
        workers = max((gate.workers for gate in self.by_pool.values()), default=1)
        return min(_MAX_PAUSE_S, _MIN_PAUSE_S * workers)

    def tick(self) -> None:
        """Asks every gate; to be called each TICK_S."""
        self._ask(self._now())

    def _ask(self, now_s: float) -> None:
        news = False
        for gate in self.by_pool.values():
            news = gate.apply(now_s) or news
        if news:
            self._changed()

    def _begin(self) -> None:
        for pool in self._table.pools.values():
            if pool.yields is not None:
                pools = (self._pools[pool.name], self._pools[templates_pool(pool.name)])
                most = pool.max_in_flight
                gate = PoolGate(self._worker, pool.yields, most, *pools, self._now_s)
                self.by_pool[pool.name] = gate
                if self._past is not None:
                    gate.remember(self._past, self._now_s)

    def _now(self) -> float:
        now_s = self._clock.now_ms() / 1000
        if now_s < self._now_s - _SET_BACK_S:
            log.warning(
                "The clock was set back; the gates learn anew.",
                action="clock_set_back",
                by_s=round(self._now_s - now_s),
            )
            self._now_s = now_s
            self._waits_s.clear()
            self._begin()
        self._now_s = max(self._now_s, now_s)
        return self._now_s
