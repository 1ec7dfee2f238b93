"""Wires the batch-worker: line.ready in, upstreams out, line.done and capacity to Kafka."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator, Mapping
from functools import partial
from typing import cast

import structlog
from faust.types import TP
from mode import Service

from schemas.records import DoneLines, ReadyLines, WorkerLoad
from schemas.topics import (
    BATCH_STATUS,
    CAPACITY,
    LINE_DONE,
    LINE_READY,
    REALTIME_REQUEST,
    Topic,
)
from streams.adapters.engine_metrics import HTTPEngineMetrics
from streams.adapters.inference import HTTPInferenceClient, request_headers
from streams.adapters.object_store import open_store
from streams.background import Tasks
from streams.batch_worker.caller import Caller
from streams.batch_worker.ended import StatusFollower
from streams.batch_worker.gate_meter import GateMeter
from streams.batch_worker.gates import TICK_S, Gates
from streams.batch_worker.load import LoadReporter, Progress
from streams.batch_worker.meter import WorkerMeter
from streams.batch_worker.prompt_line import PromptRequests
from streams.batch_worker.prompts import PromptCache
from streams.batch_worker.signals.capacity import CapacityFollower
from streams.batch_worker.signals.engine import EngineReader
from streams.batch_worker.signals.lag import LagReader
from streams.batch_worker.worker import Worker
from streams.domain.clock import SystemClock
from streams.domain.upstreams import UpstreamTable, UpstreamTableError
from streams.kafka.ack_window import AckWindow
from streams.kafka.consumer import GroupConsumer
from streams.kafka.errors import KafkaBaseError
from streams.kafka.lag import GroupOffsets
from streams.kafka.reader import TopicReader
from streams.kafka.role import Consumed, Role
from streams.ports.engine_metrics import EngineMetrics
from streams.ports.inference import InferenceClient
from streams.ports.object_store import ObjectStore, ObjectStoreError
from streams.rendering.renderer import Renderer
from streams.settings import Settings, load_upstreams

log = structlog.get_logger(__name__)

EXIT_USAGE = 2
#: Slices held at least; credits bound lines, and a slice has one or more.
_MIN_SLICES = 4096
#: Slices are up to half a megabyte, so only some are read ahead.
_BUFFER, _POLL_RECORDS = 256, 50
#: A crash repeats what is finished but not committed, so commits come often.
_COMMIT_S, _COMMIT_EVERY = 0.1, 16
#: The part of the stop budget that running calls get; the rest is for their outcomes.
_CALLS_SHARE = 0.7
#: Ended batches are known before the first line, unless reading them takes longer than this.
_CATCH_UP_S = 10.0
_READER_PAUSE_S = 1.0
#: Gates are shown in the metrics so often.
_SHOW_S = 1.0
#: Most of an outcome's rendered line that may travel in Kafka, whatever the settings say.
_MAX_TRAVELLING_BYTES = 1024 * 1024


class _Read:
    """A record in the window; its ack is noted, because the load tells how far that is."""

    __slots__ = ("consumed", "partition", "progress", "topic")

    def __init__(self, consumed: Consumed, progress: Progress) -> None:
        self.consumed = consumed
        self.progress = progress
        self.topic: Topic = consumed.topic
        self.partition = consumed.partition

    def ack(self) -> None:
        if self.consumed.live:
            self.progress.finished(self.partition, self.consumed.offset)
        self.consumed.ack()


class BatchWorker(Service):
    """The role's parts, made when its loop runs, and its two tasks beside reading."""

    worker: Worker
    load: LoadReporter
    gates: Gates

    def __init__(self, role: Role, table: UpstreamTable, store: ObjectStore) -> None:
        super().__init__()
        self._role = role
        self._table = table
        self._store = store
        #: Shares the `capacity` topic with other roles' instances.
        self._name = f"{role.name}-{role.settings.instance}"
        self._clock = SystemClock()
        self._progress = Progress()
        self._meter = WorkerMeter(role.metrics)
        most = sum(pool.max_in_flight for pool in table.pools.values())
        self._window: AckWindow[_Read] = AckWindow(max(_MIN_SLICES, 2 * most))
        self._changed = asyncio.Event()
        self._beside = Tasks(role.crash)
        self._clients: dict[str, InferenceClient] = {}
        #: Its processes start with the first line that needs them.
        self._renderer = Renderer(metrics=role.metrics)
        cache = PromptCache(store, self._clock)
        self._prompts = PromptRequests(cache, self._renderer, self._clock)
        self._status = TopicReader(role.settings, [BATCH_STATUS], metrics=role.metrics)
        self._loads = TopicReader(role.settings, [CAPACITY], metrics=role.metrics)
        self._lag = GroupOffsets(role.settings, "realtime-worker", REALTIME_REQUEST)
        self._engines: list[EngineMetrics] = []

    async def on_start(self) -> None:
        """Learns which batches ended, and begins to offer credits. Raises KafkaBaseError."""
        self._clients = _clients(self._table, os.environ)
        callers = {name: self._caller(name) for name in self._clients}
        self.worker = Worker(
            self._name,
            self._table,
            callers,
            self._send_outcomes,
            self._clock,
            self._changed.set,
            self._role.crash,
        )
        self.load = LoadReporter(
            self._name,
            self.worker.pools.values(),
            self._progress,
            self._send_load,
            self._clock,
            self._changed,
        )
        await self._start_gates()
        await self._status.start("beginning")
        await self._catch_up()
        self._beside.start(self._follow())
        self._beside.start(self.load.run())

    async def on_stop(self) -> None:
        """Closes what on_start opened."""
        await self._beside.stop(0.0)
        for client in self._clients.values():
            await client.close()
        await self._renderer.stop()
        await self._status.stop()
        await self._loads.stop()
        await self._lag.stop()
        for engine in self._engines:
            await engine.close()

    async def consume(self, records: AsyncIterator[Consumed]) -> None:
        """Takes slices as they come; waits only where far more is held than credits allow."""
        async for consumed in records:
            slot = await self._window.admit(_Read(consumed, self._progress))
            if not consumed.live:
                # Revoked while it waited: it must not stay in the way of what comes after.
                self._window.finish(slot)
                continue
            self._progress.read(consumed.partition, consumed.offset)
            ready = cast("ReadyLines", consumed.record)
            self.worker.take(ready, consumed.partition, partial(self._window.finish, slot))

    async def assigned(self, assignment: dict[str, set[int]]) -> None:
        """Says from where on the partitions are read."""
        consumer = cast("GroupConsumer", self._role.app.consumer)
        full_name = LINE_READY.full_name(self._role.settings.topic_prefix)
        starts = {
            partition: consumer.committed(TP(full_name, partition))
            for partition in assignment.get(LINE_READY.name, ())
        }
        self._progress.assigned({p: -1 if at is None else at for p, at in starts.items()})
        self._changed.set()

    async def revoked(self, revoked: dict[str, set[int]]) -> None:
        """Forgets what waits of these partitions; calls that run may still be joined."""
        self._window.drop(revoked)
        partitions = revoked.get(LINE_READY.name, set())
        self._progress.revoked(partitions)
        self.worker.revoked(partitions)

    async def stopping(self) -> None:
        """Takes nothing more, and finishes what runs within the role's budget."""
        await self.load.publish(stopping=True)
        await self.worker.stop(self._role.stop_budget_s * _CALLS_SHARE)

    def _caller(self, upstream: str) -> Caller:
        return Caller(
            self._table.upstreams[upstream],
            self._clients[upstream],
            self._store,
            self._clock,
            self._prompts,
            claim_check_bytes=min(self._role.settings.claim_check_bytes, _MAX_TRAVELLING_BYTES),
            random=random.random,
        )

    async def _send_outcomes(self, record: DoneLines) -> None:
        await self._role.producer.send(LINE_DONE, record.batch_id, record)
        self._meter.sent(record)

    async def _send_load(self, load: WorkerLoad) -> None:
        # Between two assignments, and where another may have ours, there is nothing to offer.
        if self._role.joined or load.stopping:
            self._role.fence.check()
            await self._role.producer.send(CAPACITY, load.worker, load)
            self._meter.published(load)

    async def _start_gates(self) -> None:
        pools, changed = self.worker.pools, self._changed.set
        self.gates = gates = Gates(self._name, self._table, pools, self._clock, changed)
        if not gates.by_pool:
            return
        await self._loads.start("beginning")
        await self._lag.start()
        gates.tick()
        self._beside.start(CapacityFollower(self._loads, gates.remember, gates.hear).run())
        self._beside.start(LagReader(self._lag, gates.hear_lag).run())
        for url, names in _engine_pages(self._table).items():
            engine = HTTPEngineMetrics(url)
            self._engines.append(engine)
            hear = partial(gates.hear_engine, names)
            reader = EngineReader(url, engine, hear, gates.now_s, gates.pause_s)
            self._beside.start(reader.run())
        self._beside.start(self._tick())
        self._beside.start(self._show())

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self.gates.tick()

    async def _show(self) -> None:
        meter = GateMeter(self._role.metrics)
        while True:
            for gate in self.gates.by_pool.values():
                meter.show(gate)
            await asyncio.sleep(_SHOW_S)

    async def _catch_up(self) -> None:
        follower = StatusFollower(self._status, self._clock, self.worker.end, self.worker.runs)
        ends = await self._status.ends()
        give_up = time.monotonic() + _CATCH_UP_S
        while any(self._status.positions().get(at, 0) < end for at, end in ends.items()):
            if time.monotonic() > give_up:
                log.warning("Ended batches are still being read.", action="catch_up_late")
                return
            await follower.step()

    async def _follow(self) -> None:
        follower = StatusFollower(self._status, self._clock, self.worker.end, self.worker.runs)
        while True:
            try:
                await follower.step(1.0)
            except KafkaBaseError as error:
                # Until it is back, lines of batches that end now run in vain.
                log.warning(
                    "Could not read which batches ended.",
                    action="status_not_read",
                    error=type(error).__name__,
                )
                await asyncio.sleep(_READER_PAUSE_S)


def _clients(table: UpstreamTable, environment: Mapping[str, str]) -> dict[str, InferenceClient]:
    connections: dict[str, int] = {}
    for pool in table.pools.values():
        connections[pool.upstream] = connections.get(pool.upstream, 0) + pool.max_in_flight
    return {
        name: HTTPInferenceClient(table.upstreams[name], count, environment)
        for name, count in connections.items()
    }


def _engine_pages(table: UpstreamTable) -> dict[str, list[str]]:
    """The pools that each page speaks of."""
    pages: dict[str, list[str]] = {}
    for pool in table.pools.values():
        if pool.yields is not None and pool.yields.metrics_url is not None:
            pages.setdefault(pool.yields.metrics_url, []).append(pool.name)
    return pages


def main(settings: Settings) -> int:
    """Runs a batch-worker until it is told to stop; the exit code."""
    try:
        table = load_upstreams(settings)
        for upstream in table.upstreams.values():
            request_headers(upstream, os.environ)
        store = open_store(settings.resolved_store_url)
    except (UpstreamTableError, ObjectStoreError) as error:
        log.critical(str(error), action="settings_wrong")
        return EXIT_USAGE
    role = Role(
        "batch-worker",
        settings,
        commit_interval_s=_COMMIT_S,
        commit_every=_COMMIT_EVERY,
        max_poll_records=_POLL_RECORDS,
    )
    batch_worker = BatchWorker(role, table, store)
    role.add_service(batch_worker)
    role.consume(LINE_READY, batch_worker.consume, buffer=_BUFFER)
    role.on_assigned(batch_worker.assigned)
    role.on_revoked(batch_worker.revoked)
    role.on_stopping(batch_worker.stopping)
    return role.run()
