"""When each lane's lines will have gone, if everything goes on at the present pace.

The dispatcher's order with lines as a fluid: at each pool all tenants that have something waiting
go at once, for the same cost, and of each its first lane only. So nothing has to be played
through line by line: from one lane's end to the next all speeds stay the same.

    level of a pool:   the cost that each tenant in turn there has had since the beginning
    level of a lane:   the sum over the pools at which it is its tenant's first
    a lane ends when its level has risen by its cost; then the tenant's next lane is first

Lanes that are first at the same pools rise together, so they stand in one heap by where they end.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Waiting:
    """A lane's lines that are not released yet.

    tenant: who takes turns with others. pools: where they may run, none twice. cost: of one line.
    """

    tenant: str
    pools: tuple[str, ...]
    lines: float
    cost: float = 1.0


@dataclass(slots=True)
class _Lane:
    number: int
    waiting: Waiting
    #: The level at which it ends.
    ends_at: float
    first_at: tuple[str, ...] = ()
    version: int = 0
    over: bool = False


@dataclass(slots=True)
class _Pool:
    rate: float
    level: float = 0.0
    lanes: dict[str, deque[_Lane]] = field(default_factory=dict)
    #: Lines that go at once where every tenant in turn gets one unit of cost.
    lines_a_unit: float = 0.0
    in_turn: int = 0

    @property
    def speed(self) -> float:
        return self.rate / self.lines_a_unit if self.in_turn else 0.0

    def enter(self, cost: float) -> None:
        self.in_turn += 1
        self.lines_a_unit += 1 / cost

    def leave(self, cost: float) -> None:
        self.in_turn -= 1
        # With nobody left, what rounding left over goes, too.
        self.lines_a_unit = self.lines_a_unit - 1 / cost if self.in_turn else 0.0


def ends(lanes: Sequence[Waiting], rates: Mapping[str, float]) -> list[float]:
    """Seconds until the last line of each lane has gone; infinite where no pool moves.

    lanes: in the order in which they go within their tenant. rates: lines a second by pool.
    """
    return _Flow(lanes, rates).run()


class _Flow:
    def __init__(self, lanes: Sequence[Waiting], rates: Mapping[str, float]) -> None:
        self._ends = [math.inf if lane.lines > 0 else 0.0 for lane in lanes]
        self._pools = {name: _Pool(rate) for name, rate in rates.items() if rate > 0}
        self._heaps: dict[tuple[str, ...], list[tuple[float, int, int, _Lane]]] = {}
        for number, waiting in enumerate(lanes):
            if waiting.lines > 0:
                lane = _Lane(number, waiting, waiting.lines * waiting.cost)
                for pool in self._pools_of(lane):
                    pool.lanes.setdefault(waiting.tenant, deque()).append(lane)
        for name, pool in self._pools.items():
            for tenant in pool.lanes:
                self._next_first(name, tenant)

    def run(self) -> list[float]:
        now = 0.0
        while (head := self._next()) is not None:
            seconds, lane = head
            now += seconds
            for pool in self._pools.values():
                pool.level += pool.speed * seconds
            self._ends[lane.number] = now
            self._end(lane)
        return self._ends

    def _next(self) -> tuple[float, _Lane] | None:
        """In how many seconds which lane ends first."""
        first: tuple[float, _Lane] | None = None
        for group, heap in self._heaps.items():
            while heap and heap[0][2] != heap[0][3].version:
                heapq.heappop(heap)
            if not heap:
                continue
            speed = sum(self._pools[name].speed for name in group)
            seconds = max(0.0, heap[0][0] - self._level(group)) / speed
            if first is None or seconds < first[0]:
                first = seconds, heap[0][3]
        return first

    def _end(self, lane: _Lane) -> None:
        lane.over = True
        lane.version += 1
        for name in lane.first_at:
            self._pools[name].leave(lane.waiting.cost)
        for name in lane.first_at:
            self._next_first(name, lane.waiting.tenant)

    def _next_first(self, name: str, tenant: str) -> None:
        """The tenant's next lane at the pool goes there from now on."""
        pool = self._pools[name]
        queue = pool.lanes[tenant]
        while queue and queue[0].over:
            queue.popleft()
        if not queue:
            return
        lane = queue[0]
        pool.enter(lane.waiting.cost)
        # It may have gone elsewhere until now; there it goes on.
        left = lane.ends_at - self._level(lane.first_at)
        lane.version += 1
        lane.first_at = tuple(sorted((*lane.first_at, name)))
        lane.ends_at = left + self._level(lane.first_at)
        heap = self._heaps.setdefault(lane.first_at, [])
        heapq.heappush(heap, (lane.ends_at, lane.number, lane.version, lane))

    def _level(self, group: tuple[str, ...]) -> float:
        return sum(self._pools[name].level for name in group)

    def _pools_of(self, lane: _Lane) -> list[_Pool]:
        return [self._pools[name] for name in lane.waiting.pools if name in self._pools]
