"""Wires the collector: line.done in, segments to the object store, segment events to Kafka."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from functools import partial
from typing import cast

import structlog

from schemas.metrics import COLLECTOR_HELD, LINES_COLLECTED, SEGMENTS_WRITTEN, Metrics
from schemas.records import DoneLines, SegmentWritten
from schemas.topics import BATCH_EVENT, LINE_DONE
from streams.adapters.object_store import open_store
from streams.collector.collector import Collector
from streams.collector.packer import Packer
from streams.domain.clock import SystemClock
from streams.kafka.ack_window import AckWindow
from streams.kafka.role import Consumed, Role
from streams.ports.object_store import ObjectStoreError
from streams.settings import Settings

log = structlog.get_logger(__name__)

EXIT_USAGE = 2
#: Records held; their bytes are bounded by the collector, which also keeps acks moving.
_RECORDS = 16_384
#: Records are a quarter of a megabyte when outcomes are large, so only some are read ahead.
_BUFFER, _POLL_RECORDS = 256, 50
_COMMIT_S, _COMMIT_EVERY = 0.5, 500
#: The part of the stop budget in which what waits is packed.
_PACK_SHARE = 0.8


class CollectorRole:
    """The role's parts and what happens to its partitions."""

    def __init__(self, role: Role, collector: Collector) -> None:
        self._role = role
        self._collector = collector
        self._window: AckWindow[Consumed] = AckWindow(_RECORDS)

    async def consume(self, records: AsyncIterator[Consumed]) -> None:
        """Takes outcomes as they come, as long as there is room for them."""
        async for consumed in records:
            await self._collector.room()
            slot = await self._window.admit(consumed)
            finished = partial(self._window.finish, slot)
            if consumed.live:
                done = cast("DoneLines", consumed.record)
                self._collector.take(done, consumed.partition, consumed.offset, finished)
            else:
                # Revoked while it waited: it must not stay in the way of what comes after.
                finished()

    async def revoked(self, revoked: dict[str, set[int]]) -> None:
        """Forgets what waits of these partitions."""
        self._window.drop(revoked)
        self._collector.revoked(revoked.get(LINE_DONE.name, set()))

    async def stopping(self) -> None:
        """Packs what waits within the role's budget."""
        await self._collector.stop(self._role.stop_budget_s * _PACK_SHARE)


def main(settings: Settings) -> int:
    """Runs a collector until it is told to stop; the exit code."""
    try:
        store = open_store(settings.resolved_store_url)
    except ObjectStoreError as error:
        log.critical(str(error), action="settings_wrong")
        return EXIT_USAGE
    role = Role(
        "collector",
        settings,
        commit_interval_s=_COMMIT_S,
        commit_every=_COMMIT_EVERY,
        max_poll_records=_POLL_RECORDS,
    )

    clock = SystemClock()

    async def send(event: SegmentWritten) -> None:
        await role.producer.send(BATCH_EVENT, event.batch_id, event)
        _count(role.metrics, event, collector.held_bytes)

    collector = Collector(Packer(store, send, clock), clock, role.crash)
    parts = CollectorRole(role, collector)
    role.consume(LINE_DONE, parts.consume, buffer=_BUFFER)
    role.on_revoked(parts.revoked)
    role.on_stopping(parts.stopping)
    return role.run()


def _count(metrics: Metrics, event: SegmentWritten, held_bytes: int) -> None:
    for kind, lines in Counter(line.kind for line in event.lines).items():
        metrics.counter(LINES_COLLECTED).labels(kind).inc(lines)
    if event.segment is not None:
        metrics.counter(SEGMENTS_WRITTEN).inc()
    metrics.gauge(COLLECTOR_HELD).set(held_bytes)
