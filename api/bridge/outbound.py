"""Gives tenants the results of their batches that came through Kafka, once they have ended.

    batch.status ── ended, with a Kafka key ──► a lane per tenant ──► Delivery, one by one
    (a group's)      of each partition

How far a tenant's results are delivered is committed with them, in a group of the tenant's own
(lane_out.py). The group that reads batch.status only commits how far it need not be read again:
what precedes that is delivered, or was never to be.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Protocol

import structlog
from aiokafka import ConsumerRecord

from api.bridge.lane_out import LaneParts, Room, TenantLane, due
from api.bridge.lanes import Lanes
from api.bridge.turns import Turns
from streams.kafka.errors import KafkaBaseError
from streams.kafka.group_reader import Held, Mark, TopicPart

log = structlog.get_logger(__name__)

_POLL_S = 0.5
#: How often it is committed how far was read.
_COMMIT_S = 5.0
#: Lanes that deliver at the same time. Each has a connection or three.
_LANES_AT_ONCE = 8
_LANES_OF_A_TENANT = 2


class Statuses(Protocol):
    """A group's reading of batch.status."""

    async def poll(self, timeout_s: float) -> Mapping[TopicPart, Sequence[ConsumerRecord]]:
        """What has come, in order within a partition. Raises KafkaBaseError."""
        ...

    def held(self) -> Mapping[TopicPart, Held]:
        """The partitions that are this process's, as of the last poll."""
        ...

    async def commit(self, part: TopicPart, since: int, mark: Mark) -> bool:
        """Says how far a partition was read that is this process's since then (Held.since).

        False if it no longer is: nothing is committed. Raises KafkaBaseError.
        """
        ...


class Outbound:
    """Reads how batches end and delivers their results."""

    def __init__(self, statuses: Statuses, parts: LaneParts) -> None:
        self._statuses = statuses
        self._parts = parts
        self._turns = Turns(_LANES_AT_ONCE, _LANES_OF_A_TENANT)
        self._room = Room()
        self._lanes = Lanes(self._started)
        self._committed: dict[TopicPart, int] = {}
        self._due_s = 0.0

    async def run(self) -> None:
        """Works until it is cancelled. Raises KafkaBaseError."""
        try:
            while True:
                await self.step(_POLL_S)
        finally:
            await self.stop()

    async def stop(self) -> None:
        """Ends the work; what was not committed is delivered by whoever goes on."""
        await self._lanes.stop()

    async def step(self, timeout_s: float) -> None:
        """Takes in what has come, or waits for so long. Raises KafkaBaseError."""
        self._lanes.check()
        came = await self._statuses.poll(timeout_s)
        await self._lanes.follow(dict(self._statuses.held()))
        for part, records in came.items():
            if (lanes := self._lanes.get(part)) is not None:
                lanes.take(records)
        now_s = asyncio.get_running_loop().time()
        if now_s >= self._due_s:
            self._due_s = now_s + _COMMIT_S
            await self._commit()

    def _started(self, part: TopicPart, held: Held) -> _Partition:
        self._committed.pop(part, None)
        return _Partition(self._parts, part, held.since, self._turns, self._room)

    async def _commit(self) -> None:
        try:
            for part, lanes in list(self._lanes.items()):
                at = lanes.floor
                news = at > self._committed.get(part, 0)
                if news and await self._statuses.commit(part, lanes.since, Mark(at)):
                    self._committed[part] = at
        except KafkaBaseError as error:
            # All it costs is that more is read again after a restart.
            log.warning("Could not commit.", action="commit_failed", error=type(error).__name__)


class _Partition:
    """One partition of batch.status, in one time that it is this process's."""

    def __init__(
        self, parts: LaneParts, part: TopicPart, since: int, turns: Turns, room: Room
    ) -> None:
        self.since = since
        self._parts, self._part, self._turns, self._room = parts, part, turns, room
        self._tenants: dict[str, TenantLane] = {}
        self._read_to = 0

    @property
    def floor(self) -> int:
        """What precedes it need not be read again."""
        waiting = [at for lane in self._tenants.values() if (at := lane.floor) is not None]
        return min(waiting, default=self._read_to)

    def take(self, records: Sequence[ConsumerRecord]) -> None:
        """These came."""
        for record in records:
            batch = due(self._parts, record)
            if batch is not None:
                self._lane(batch.tenant).add(record, batch)
            self._read_to = record.offset + 1

    def check(self) -> None:
        """Raises what a lane ended with."""
        for lane in self._tenants.values():
            lane.check()

    async def stop(self) -> None:
        """Ends the work of all."""
        await asyncio.gather(*(lane.stop() for lane in self._tenants.values()))

    def _lane(self, tenant: str) -> TenantLane:
        if tenant not in self._tenants:
            self._tenants[tenant] = TenantLane(
                self._parts, self._part, tenant, self._turns, self._room
            )
        return self._tenants[tenant]
