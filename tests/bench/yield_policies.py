"""What Backhaul is compared with: static caps, AIMD on errors, rules tuned in hindsight."""

from __future__ import annotations

import math

from streams.simulator.engine import Lane
from tests.bench.yield_world import Order, World


class StaticCap:
    """Always so many calls in flight."""

    def __init__(self, calls: int) -> None:
        self._order = Order(calls)

    def order(self, now_s: float, world: World) -> Order:
        """See Policy."""
        return self._order

    def next_at_s(self) -> float:
        """See Policy."""
        return math.inf


class Aimd:
    """One more call after each `limit` answers, half as many after an error; up to 256.

    The engine queues and never refuses, so the half that backs off is never used.
    """

    def __init__(self, highest: int = 256) -> None:
        self._highest = highest
        self._limit = 1.0

    def order(self, now_s: float, world: World) -> Order:
        """See Policy."""
        if world.last_step is not None:
            answers = sum(request.lane is Lane.BATCH for request in world.news)
            self._limit = min(self._highest, self._limit + answers / self._limit)
        return Order(int(self._limit))

    def next_at_s(self) -> float:
        """See Policy."""
        return math.inf


class FallingCap:
    """`top` calls, less `slope` for each real-time request in flight: a rule tuned in hindsight."""

    def __init__(self, top: float, slope: float = 1.5) -> None:
        self._top = top
        self._slope = slope

    def order(self, now_s: float, world: World) -> Order:
        """See Policy."""
        return Order(max(0, int(self._top - self._slope * world.realtime_in_flight)))

    def next_at_s(self) -> float:
        """See Policy."""
        return math.inf


class TwoLevels:
    """So many sequences in all while few real-time calls are in flight, fewer beyond, with abort.

    A rule tuned in hindsight: what Backhaul's plan comes to on waves, without its learning.
    """

    def __init__(self, calm: int, busy: int, beyond: int = 14, slack: int = 8) -> None:
        self._calm = calm
        self._busy = busy
        self._beyond = beyond
        self._slack = slack
        self._is_busy = False

    def order(self, now_s: float, world: World) -> Order:
        """See Policy."""
        realtime = world.realtime_in_flight
        if realtime > self._beyond:
            self._is_busy = True
        elif realtime <= 0.7 * self._beyond:
            self._is_busy = False
        limit = max(0, (self._busy if self._is_busy else self._calm) - realtime)
        return Order(limit, limit + self._slack if self._is_busy else 1_000_000)

    def next_at_s(self) -> float:
        """See Policy."""
        return math.inf
