"""Watches what the batch-workers say of themselves while a live run goes on."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from schemas.records import WorkerLoad
from schemas.topics import CAPACITY
from streams.kafka.reader import TopicReader
from streams.settings import Settings


@dataclass(slots=True)
class Watched:
    """(monotonic seconds, limit of all workers, their calls in flight), at each load."""

    points: list[tuple[float, int, int]] = field(default_factory=list)

    def since(self, at_s: float) -> list[tuple[float, int, int]]:
        """What came after that moment."""
        return [point for point in self.points if point[0] >= at_s]


async def watch(kafka: str, pool: str, watched: Watched) -> None:
    """Follows `capacity` until it is cancelled."""
    reader = TopicReader(Settings(kafka=kafka), [CAPACITY])
    await reader.start("end")
    limits: dict[str, tuple[int, int]] = {}
    try:
        while True:
            for read in await reader.poll(0.05):
                if not isinstance(read.record, WorkerLoad):
                    continue
                for load in read.record.pools:
                    if load.pool == pool:
                        limits[read.record.worker] = load.limit, load.in_flight
                        limit = sum(most for most, _ in limits.values())
                        calls = sum(calls for _, calls in limits.values())
                        watched.points.append((time.perf_counter(), limit, calls))
    finally:
        await reader.stop()


def reaction(watched: Watched, first_sent_s: float, last_end_s: float) -> tuple[float, float]:
    """Seconds from a burst's first call until the limit is down, and from its end until it is up.

    Down is within a tenth of the way from the burst's median limit to that before; up is 95 % of
    that before. NaN where it did not happen.
    """
    before = max((p[1] for p in watched.points if p[0] < first_sent_s), default=0)
    during = sorted(p[1] for p in watched.since(first_sent_s) if p[0] < last_end_s)
    busy = during[len(during) // 2] if during else before
    low = busy + (before - busy) / 10
    down = next((p[0] for p in watched.since(first_sent_s) if p[1] <= low), float("nan"))
    up = next((p[0] for p in watched.since(last_end_s) if p[1] >= 0.95 * before), float("nan"))
    return down - first_sent_s, up - last_end_s
