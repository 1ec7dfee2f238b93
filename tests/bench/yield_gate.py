"""Backhaul's gate as a policy of the bench: it sees what it would see live, and as late.

engine ─► realtime-worker's record: on change, at most each 20 ms, and each second
             │ 5 to 30 ms on its way through Kafka
             ▼
           Gate ─► Decision ─► batch-workers
"""

from __future__ import annotations

import heapq
import math
import random

from streams.domain.gate.floor import Demand
from streams.domain.gate.gate import Gate, GateSettings
from streams.domain.gate.signals import FirstToken, RealtimeLoad, Signal
from streams.simulator.engine import EngineRequest, Lane
from tests.bench.yield_world import Order, World

_PUBLISH_S = 0.02
_HEARTBEAT_S = 1.0
_TRANSPORT_S = (0.005, 0.03)
#: The gate is asked this often, besides after each signal.
_TICK_S = 0.1
#: A batch-worker that starts hears what goes on before it sends anything.
_LISTEN_S = 1.5


class Backhaul:
    """The gate, its realtime-worker and the way between them.

    transport_s: shortest and longest time that a record takes. drop: share of records lost.
    gate: one that has learnt already, and at whose time `later_s` this run begins.
    """

    def __init__(
        self,
        settings: GateSettings,
        seed: int = 0,
        *,
        transport_s: tuple[float, float] = _TRANSPORT_S,
        drop: float = 0.0,
        gate: Gate | None = None,
        later_s: float = 0.0,
    ) -> None:
        self.gate = Gate(settings) if gate is None else gate
        self._later_s = later_s
        #: Every change of the limit: (time, limit).
        self.limits: list[tuple[float, int]] = []
        self._transport_s = transport_s
        self._drop = drop
        self._random = random.Random(f"transport {seed}")
        self._on_way: list[tuple[float, int, Signal]] = []
        self._sent = 0
        self._published_s = -math.inf
        self._tick_s = 0.0
        self._now_s = 0.0
        self._changed = False
        self._tokens: list[FirstToken] = []
        self._gaps = 0
        self._gaps_s = 0.0
        self._order = Order(settings.floor)
        self._publish_at = 0.0
        self._told = -1
        #: How long a batch call takes, averaged over the latest; 0 before the first.
        self._call_s = 0.0
        #: Real-time calls without a first token.
        self._awaiting = 0
        #: Between two starts, as the gate says; when the last was, and how many there were.
        self._gap_s = 0.0
        self._started_s = -math.inf
        self._started = 0

    def order(self, now_s: float, world: World) -> Order:
        """See Policy."""
        self._now_s = now_s
        self._average(world)
        self._watch(world)
        if now_s >= self._publish_at:
            self._publish(now_s, world)
        ask = now_s >= self._tick_s
        while self._on_way and self._on_way[0][0] <= now_s:
            self.gate.hear(heapq.heappop(self._on_way)[2], now_s + self._later_s)
            ask = True
        if world.in_flight != self._told:
            self._told = world.in_flight
            self.gate.batch_in_flight(world.in_flight, now_s + self._later_s)
        if ask:
            self._tick_s = now_s + _TICK_S
        if ask and now_s >= _LISTEN_S:
            decision = self.gate.decide(now_s + self._later_s, Demand(call_s=self._call_s))
            above = decision.abort_above
            if not self.limits or self.limits[-1][1] != decision.limit:
                self.limits.append((now_s, decision.limit))
            self._order = Order(decision.limit, 1_000_000 if above is None else above)
            self._gap_s = decision.gap_s
        return self._spaced(now_s, world)

    def _spaced(self, now_s: float, world: World) -> Order:
        """The order, but for starts that must wait."""
        if world.started > self._started:
            self._started, self._started_s = world.started, now_s
        limit, above = self._order
        if self._gap_s <= 0 or limit <= world.in_flight:
            return self._order
        room = now_s >= self._started_s + self._gap_s
        return Order(world.in_flight + room, above)

    def next_at_s(self) -> float:
        """See Policy."""
        arrives = self._on_way[0][0] if self._on_way else math.inf
        start = self._started_s + self._gap_s
        return min(
            self._publish_at, self._tick_s, arrives, start if start > self._now_s else math.inf
        )

    def _average(self, world: World) -> None:
        """What the batch-workers notice."""
        for request in world.last_step.finished if world.last_step is not None else ():
            if request.lane is Lane.BATCH:
                took_s = self._now_s - request.submitted_at_s
                self._call_s += (took_s - self._call_s) / 20 if self._call_s else took_s

    def _watch(self, world: World) -> None:
        """What the realtime-worker notices."""
        step = world.last_step
        if step is not None:
            if step.gaps[Lane.REALTIME]:
                self._gaps += step.gaps[Lane.REALTIME]
                self._gaps_s += (step.end_s - step.start_s) * step.gaps[Lane.REALTIME]
            for request in step.first:
                self._awaiting -= request.lane is Lane.REALTIME
                self._first(request)
        else:
            self._awaiting += len(world.news)
        if self._tokens or any(request.lane is Lane.REALTIME for request in world.news):
            self._publish_at = min(self._publish_at, self._published_s + _PUBLISH_S)

    def _first(self, request: EngineRequest) -> None:
        if request.lane is Lane.REALTIME and request.first_at_s is not None:
            ttft_s = request.first_at_s - request.submitted_at_s
            sent_at_s = request.submitted_at_s + self._later_s
            self._tokens.append(FirstToken(sent_at_s, ttft_s))

    def _publish(self, now_s: float, world: World) -> None:
        self._publish_at = now_s + _HEARTBEAT_S
        load = self._load(now_s, world)
        arrives = now_s + self._random.uniform(*self._transport_s)
        self._sent += 1
        if self._drop == 0 or self._random.random() >= self._drop:
            heapq.heappush(self._on_way, (arrives, self._sent, load))
        self._tokens, self._gaps, self._gaps_s = [], 0, 0.0
        self._published_s = now_s

    def _load(self, now_s: float, world: World) -> Signal:
        return RealtimeLoad(
            worker="realtime-1",
            at_s=now_s + self._later_s,
            in_flight=world.realtime_in_flight,
            first_tokens=tuple(self._tokens),
            gaps=self._gaps,
            gaps_s=self._gaps_s,
            awaiting=self._awaiting,
        )
