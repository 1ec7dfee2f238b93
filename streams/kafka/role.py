"""A role's process: what it consumes, its tables, and its life from start to exit code.

    start:  health ─► topics there? ─► producer ─► services ─► Faust app (join, recover) ─► ready
    SIGTERM: no more records ─► on_stopping (finish what is in flight) ─► commit ─► leave
             ─► services ─► producer ─► health ─► 0
    crash:  nothing more is handed out; finished work may still be committed; all closes; 1

A role wires itself up before `run`, which blocks:

    role = Role("collector", settings)
    role.consume(LINE_DONE, collector.run)
    return role.run()
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, cast

import faust
import structlog
from aiokafka.errors import IllegalStateError
from faust.events import Event
from faust.types import TP, Message
from mode import ServiceT

from schemas.codec import DecodeError, decode
from schemas.headers import DLQReason
from schemas.metrics import (
    ASSIGNED_PARTITIONS,
    REBALANCES,
    RECORDS_CONSUMED,
    RECOVERY_SECONDS,
    Metrics,
)
from schemas.records import Record
from schemas.topics import Topic
from streams.kafka.app import AppOptions, RoleApp
from streams.kafka.consumer import GroupConsumer
from streams.kafka.dead_letters import DeadLetters
from streams.kafka.errors import KafkaBaseError
from streams.kafka.fence import Fence
from streams.kafka.lifecycle import run_role
from streams.kafka.producer import RecordProducer
from streams.kafka.tables import RowTable
from streams.kafka.watchdog import STALL_S
from streams.settings import Settings

log = structlog.get_logger(__name__)

#: How long a graceful stop waits for what is in flight.
DEFAULT_STOP_BUDGET_S = 10.0

#: Topic.name to partitions.
Assignment = Mapping[str, set[int]]
OnPartitions = Callable[[dict[str, set[int]]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Consumed:
    """One record that the group gave us. It is the consumer's job to ack it once."""

    record: Record
    topic: Topic
    partition: int
    offset: int
    event: Event
    _consumer: GroupConsumer

    def ack(self) -> None:
        """Says that everything that follows from the record is done. Any order is safe."""
        self._consumer.ack(self.event.message)

    @property
    def live(self) -> bool:
        """False once the partition was revoked: work on it must stop, an ack does nothing."""
        message = self.event.message
        return self._consumer.is_live(message.tp, cast("int", message.generation_id))


Body = Callable[[AsyncIterator[Consumed]], Awaitable[None]]


class Role:
    """One role's Faust app with everything around it. Made once per process."""

    def __init__(
        self,
        name: str,
        settings: Settings,
        *,
        tables: bool = False,
        linger_ms: int = 0,
        commit_interval_s: float = 1.0,
        commit_every: int = 500,
        max_poll_records: int = 200,
        stop_budget_s: float = DEFAULT_STOP_BUDGET_S,
        stall_s: float = STALL_S,
    ) -> None:
        self.name = name
        self.settings = settings
        self.stop_budget_s = stop_budget_s
        self.stall_s = stall_s
        self.metrics = Metrics().with_process()
        self.producer = RecordProducer(settings, linger_ms=linger_ms, metrics=self.metrics)
        self.fence = Fence(settings.session_timeout_s)
        self.crashed: asyncio.Future[BaseException] | None = None
        self.app = RoleApp(
            AppOptions(
                settings=settings,
                role=name,
                tables=tables,
                commit_interval_s=commit_interval_s,
                commit_every=commit_every,
                max_poll_records=max_poll_records,
                fence=self.fence,
                on_revoked=self._revoked,
                on_crash=self.crash,
            )
        )
        self.app.on_rebalance_complete.connect(cast("Any", self._rebalanced), weak=False)
        self.topics: dict[str, Topic] = {}
        self.tables: list[tuple[RowTable, Topic]] = []
        self.services: list[ServiceT] = []
        #: How many bodies wait for a record, by full topic name: hungry, not busy.
        self.hungry: set[str] = set()
        self.assigned: dict[str, set[int]] = {}
        self.joined = False
        self.rebalance_began_at: float | None = None
        self._stopping = False
        self._callbacks = asyncio.Lock()
        self._dead_letters = DeadLetters(self.producer, self.metrics)
        self._on_assigned: list[OnPartitions] = []
        self._on_revoked: list[OnPartitions] = []
        self._on_stopping: list[Callable[[], Awaitable[None]]] = []

    # -- wiring, before run ----------------------------------------------------------------

    def consume(self, topic: Topic, body: Body, *, buffer: int = 1024) -> None:
        """Runs `body` over the records of a topic, for as long as the process lives.

        It sees decoded records of the right types and of live partitions only; the others go to
        the dead-letter topic. buffer: records that may wait in memory; at least five polls'
        worth. An exception that leaves the body ends the process.
        """
        full_name = topic.full_name(self.settings.topic_prefix)
        self.topics[full_name] = topic
        channel = self.app.topic(
            full_name,
            key_type=bytes,
            value_type=bytes,
            key_serializer="raw",
            value_serializer="raw",
            maxsize=buffer,
        )

        async def agent(stream: faust.StreamT[bytes]) -> None:
            try:
                await body(self._records(full_name, topic, stream))
            except asyncio.CancelledError:
                raise
            except BaseException as error:  # noqa: BLE001 - whatever it is, the process must end
                self.crash(error)
            else:
                if not self._stopping:
                    self.crash(KafkaBaseError(f"The work on {topic.name} ended by itself."))

        self.app.agent(channel, name=f"{self.name}-{topic.name}", concurrency=1)(agent)

    def table(self, name: str, source: Topic) -> RowTable:
        """A table whose rows live in the same partitions as `source`'s events."""
        table = RowTable(self.app, name)
        self.tables.append((table, source))
        return table

    def add_service(self, service: ServiceT) -> None:
        """A mode.Service to start after the producer, before any record, and stop after them."""
        self.services.append(service)

    def on_assigned(self, callback: OnPartitions) -> None:
        """Awaited with all partitions held, before their first record, after table recovery.

        `committed` answers for them. It must return soon: a rebalance waits for it.
        """
        self._on_assigned.append(callback)

    def on_revoked(self, callback: OnPartitions) -> None:
        """Awaited with the partitions to give up; acks that it makes are still committed.

        It must return within a third of the session time-out.
        """
        self._on_revoked.append(callback)

    def on_stopping(self, callback: Callable[[], Awaitable[None]]) -> None:
        """Awaited at a graceful stop, when no more records come, within the stop budget.

        The place to finish or give up what is in flight; acks made here are committed.
        """
        self._on_stopping.append(callback)

    # -- life ------------------------------------------------------------------------------

    def run(self) -> int:
        """Runs until SIGTERM or SIGINT (0), or until something fails (1). Blocks."""
        return run_role(self)

    def crash(self, error: BaseException) -> None:
        """Ends the process. Callable from any thread; the first error counts."""
        if self.crashed is not None:
            self.crashed.get_loop().call_soon_threadsafe(self._note_crash, error)

    def _note_crash(self, error: BaseException) -> None:
        if self.crashed is not None and not self.crashed.done():
            self.crashed.set_result(error)

    def waiting_for(self) -> str | None:
        """What must happen before the role can work; None when it is ready."""
        if self._stopping:
            return "stopping"
        if self.joined:
            return None
        return "recovery of tables" if self.app.in_recovery else "assignment by the group"

    async def drain(self) -> None:
        """Stops handing out records, and lets the role finish within its budget."""
        self._stopping = True
        if not self.joined:
            return
        try:
            async with asyncio.timeout(self.stop_budget_s):
                await asyncio.gather(*(callback() for callback in self._on_stopping))
        except TimeoutError:
            log.warning(
                "What was in flight took too long and will be done again.",
                action="stop_budget_exceeded",
            )

    def committed(self, topic: Topic) -> dict[int, int]:
        """The commit of each partition of a consumed topic that is held; -1 for none."""
        consumer = cast("GroupConsumer", self.app.consumer)
        full_name = topic.full_name(self.settings.topic_prefix)
        held = [tp for tp in consumer.assignment() if tp.topic == full_name]
        commits = {tp.partition: consumer.committed(tp) for tp in held}
        return {partition: -1 if at is None else at for partition, at in commits.items()}

    async def reject(self, consumed: Consumed, error: str) -> None:
        """Dead-letters a record that breaks a rule, and acks it. error: without its content."""
        await self._bury(consumed.event.message, DLQReason.INVALID, error)

    # -- records ---------------------------------------------------------------------------

    async def _records(
        self, full_name: str, topic: Topic, stream: faust.StreamT[bytes]
    ) -> AsyncIterator[Consumed]:
        # The stream's queue is read directly: Faust's iteration yields to the loop and calls
        # its sensors for each event, and acks them by rules that lose records.
        queue = cast("Any", stream).channel.queue
        consumer = cast("GroupConsumer", self.app.consumer)
        consumed = self.metrics.counter(RECORDS_CONSUMED).labels(full_name)
        while True:
            if queue.empty():
                self.hungry.add(full_name)
                try:
                    event = await queue.get()
                except StopAsyncIteration:
                    # Faust's way to end a stream when the app stops.
                    return
                self.hungry.discard(full_name)
            else:
                event = queue.get_nowait()
            message = event.message
            if self._stopping:
                await asyncio.get_running_loop().create_future()
            if not consumer.is_live(message.tp, message.generation_id):
                continue
            try:
                record = decode(message.value or b"")
                if not isinstance(record, topic.records):
                    await self._bury(message, DLQReason.WRONG_RECORD, type(record).__name__)
                    continue
            except DecodeError as error:
                await self._bury(message, DLQReason.UNDECODABLE, str(error))
                continue
            self._dead_letters.good()
            consumed.inc()
            yield Consumed(record, topic, message.partition, message.offset, event, consumer)

    async def _bury(self, message: Message, reason: DLQReason, error: str) -> None:
        await self._dead_letters.bury(
            full_name=message.topic,
            partition=message.partition,
            offset=message.offset,
            key=message.key,
            value=message.value,
            headers=tuple(cast("Any", message.headers) or ()),
            reason=reason,
            error=error,
        )
        self.app.consumer.ack(message)

    # -- partitions ------------------------------------------------------------------------

    async def _revoked(self, revoked: set[TP]) -> None:
        self.joined = False
        self.rebalance_began_at = time.monotonic()
        self.metrics.counter(REBALANCES).inc()
        async with self._callbacks:
            given_up = self._by_topic(revoked)
            self.assigned = {}
            if not given_up:
                return
            for callback in self._on_revoked:
                await callback(given_up)
            log.info(
                "Partitions revoked.", action="partitions_revoked", partitions=_words(given_up)
            )

    async def _rebalanced(self, app: Any, **_: Any) -> None:
        """Faust says that tables are recovered and streams are about to go on."""
        generation = self.app.consumer_generation_id
        consumer = cast("GroupConsumer", self.app.consumer)
        async with self._callbacks:
            tps = set(consumer.assignment())
            assigned = self._by_topic(tps)
            try:
                # Faust seeks after this signal; but callbacks ask what is committed.
                await consumer.perform_seek()
                for table, source in self.tables:
                    table.settle(assigned.get(source.name, set()))
                for callback in self._on_assigned:
                    await callback(assigned)
            except IllegalStateError:
                # The partitions are gone again; the rebalance that took them ends here, too.
                return
            except Exception as error:  # noqa: BLE001 - Faust would log it and go on without
                self.crash(error)
                return
            self.assigned = assigned
            if generation == self.app.consumer_generation_id:
                self._note_joined(assigned)

    def _note_joined(self, assigned: dict[str, set[int]]) -> None:
        self.joined = True
        if self.rebalance_began_at is not None:
            took_s = time.monotonic() - self.rebalance_began_at
            self.metrics.gauge(RECOVERY_SECONDS).set(took_s)
        self.rebalance_began_at = None
        for full_name, topic in self.topics.items():
            count = len(assigned.get(topic.name, ()))
            self.metrics.gauge(ASSIGNED_PARTITIONS).labels(full_name).set(count)
        log.info("Partitions assigned.", action="partitions_assigned", partitions=_words(assigned))

    def _by_topic(self, tps: Collection[TP]) -> dict[str, set[int]]:
        found: dict[str, set[int]] = {}
        for tp in tps:
            topic = self.topics.get(tp.topic)
            if topic is not None:
                found.setdefault(topic.name, set()).add(tp.partition)
        return found


def _words(assigned: Assignment) -> str:
    return ", ".join(f"{name}: {sorted(found)}" for name, found in sorted(assigned.items()))
