"""Ends a process that is assigned work but doesn't get it, so that a supervisor restarts it.

aiokafka and Faust have known hangs in which a member keeps its partitions and heartbeats but
fetches nothing, or never ends a rebalance or a recovery. A role that is merely busy is not
stalled: its bodies are not waiting for a record.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, cast

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError
from faust.types import TP

from schemas.metrics import CONSUMER_LAG
from streams.kafka.connection import connection
from streams.kafka.consumer import GroupConsumer
from streams.kafka.errors import Stalled

if TYPE_CHECKING:
    from streams.kafka.role import Role

log = structlog.get_logger(__name__)

#: A partition with records from which nothing is read for so long is stalled.
STALL_S = 30.0
#: A rebalance or a recovery that shows no progress for so long: stalled.
REBALANCE_STALL_S = 120.0
_ASK_S = 10.0


async def watch(role: Role) -> None:
    """Runs until cancelled; calls role.crash(Stalled) when the role is stalled."""
    joining, reading = _Joining(role), _Reading(role)
    while True:
        await asyncio.sleep(role.stall_s / 3)
        try:
            if role.joined:
                joining.over()
                await reading.check()
            else:
                reading.forget()
                joining.check()
        except Stalled as error:
            role.crash(error)


class _Joining:
    """Whether a rebalance, with the recovery of tables after it, moves."""

    def __init__(self, role: Role) -> None:
        self._role = role
        self._moved_at = time.monotonic()
        self._replayed = -1

    def over(self) -> None:
        self._moved_at = time.monotonic()

    def check(self) -> None:
        replayed = sum(table.applied for table, _ in self._role.tables)
        if replayed != self._replayed:
            self._replayed = replayed
            self.over()
        elif time.monotonic() - self._moved_at > REBALANCE_STALL_S:
            raise Stalled("The group's rebalance, or the tables' recovery, hangs.")


class _Reading:
    """Whether partitions with records are read, as long as somebody waits for them."""

    def __init__(self, role: Role) -> None:
        self._role = role
        self._consumer = cast("GroupConsumer", role.app.consumer)
        #: Position at which a partition was first found waiting, and when.
        self._suspects: dict[TP, tuple[int | None, float]] = {}

    def forget(self) -> None:
        self._suspects.clear()

    async def check(self) -> None:
        lags = await self._lags()
        for tp, lag in lags.items():
            # A topic whose body is busy is not stalled, however much waits.
            if lag == 0 or tp.topic not in self._role.hungry:
                self._suspects.pop(tp, None)
                continue
            position, now = self._consumer.next_offset(tp), time.monotonic()
            seen = self._suspects.get(tp)
            if seen is None or seen[0] != position:
                self._suspects[tp] = (position, now)
            elif now - seen[1] >= self._role.stall_s:
                raise Stalled(
                    f"{lag} records wait on {tp.topic}/{tp.partition}, but none was read for "
                    f"{self._role.stall_s:.0f} s."
                )

    async def _lags(self) -> dict[TP, int]:
        """Records waiting, by assigned partition, as the broker tells it."""
        topics = self._role.topics
        tps = [tp for tp in self._consumer.assignment() if tp.topic in topics]
        if not tps:
            return {}
        try:
            starts, ends = await _bounds(self._role, tps)
        except (KafkaError, OSError, TimeoutError) as error:
            # The broker is away; a restart would not bring it back.
            log.warning("The lag is unknown.", action="lag_unknown", error=type(error).__name__)
            return {}
        lags: dict[TP, int] = {}
        for tp in tps:
            position = self._consumer.next_offset(tp)
            # What retention removed doesn't wait any more.
            read = starts[tp] if position is None else max(position, starts[tp])
            lags[tp] = max(0, ends[tp] - read)
        self._measure(lags)
        return lags

    def _measure(self, lags: dict[TP, int]) -> None:
        for full_name in self._role.topics:
            lag = sum(n for tp, n in lags.items() if tp.topic == full_name)
            self._role.metrics.gauge(CONSUMER_LAG).labels(full_name).set(lag)


async def _bounds(role: Role, tps: list[TP]) -> tuple[dict[TP, int], dict[TP, int]]:
    """First and next offset of each partition, asked over a connection of its own.

    The consumer's may be what is stuck.
    """
    asked = {TopicPartition(tp.topic, tp.partition): tp for tp in tps}
    client = AIOKafkaConsumer(**connection(role.settings), group_id=None)
    try:
        async with asyncio.timeout(_ASK_S):
            await client.start()
            starts = await client.beginning_offsets(list(asked))
            ends = await client.end_offsets(list(asked))
    finally:
        await client.stop()
    return ({t: starts[a] for a, t in asked.items()}, {t: ends[a] for a, t in asked.items()})
