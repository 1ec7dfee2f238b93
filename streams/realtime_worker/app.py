"""Wires the realtime-worker: realtime.request in, upstreams out, realtime.reply to Kafka."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from typing import cast

import structlog
from mode import Service

from schemas.records import (
    RealtimeCancel,
    RealtimeLoad,
    RealtimeReplies,
    RealtimeRequest,
    UsageRecorded,
)
from schemas.topics import (
    CAPACITY,
    REALTIME_CANCEL,
    REALTIME_REPLY,
    REALTIME_REQUEST,
    USAGE_RECORDED,
)
from streams.adapters.inference import HTTPInferenceClient, request_headers
from streams.background import Tasks
from streams.domain.clock import SystemClock
from streams.domain.ids import new_process_id
from streams.domain.upstreams import UpstreamTable, UpstreamTableError
from streams.kafka.errors import KafkaBaseError
from streams.kafka.producer import RecordProducer
from streams.kafka.reader import TopicReader
from streams.kafka.role import Consumed, Role
from streams.ports.inference import InferenceClient
from streams.realtime_worker.load import LoadReporter
from streams.realtime_worker.upstream import Caller
from streams.realtime_worker.usage import UsageReporter
from streams.realtime_worker.worker import Worker
from streams.settings import Settings, load_upstreams

log = structlog.get_logger(__name__)

EXIT_USAGE = 2
#: Requests are up to a few megabytes, so only some are read ahead.
_BUFFER, _POLL_RECORDS = 256, 50
#: What is acked and not committed would be read again, and may run again if we are killed before
#: our first word of it, which waits as long.
_COMMIT_S, _COMMIT_EVERY = 0.025, 16
#: Clients wait for what a dead worker's partitions hold. Brokers allow no less by default.
_SESSION_TIMEOUT_S = 6.0
#: The part of the stop budget that running calls get; the rest is for their last parts.
_CALLS_SHARE = 0.7
#: What the last usage gets.
_USAGE_BUDGET_S = 2.0
_READER_PAUSE_S = 1.0


class RealtimeWorker(Service):
    """The role's parts, made when its loop runs, and its two tasks beside reading."""

    worker: Worker
    load: LoadReporter
    usage: UsageReporter

    def __init__(self, role: Role, table: UpstreamTable) -> None:
        super().__init__()
        self._role = role
        self._table = table
        self._clock = SystemClock()
        self._changed = asyncio.Event()
        self._beside = Tasks(role.crash)
        self._clients: dict[str, InferenceClient] = {}
        #: The parts of answers wait behind nothing else: a producer has one request on its way.
        self._replier = RecordProducer(role.settings, metrics=role.metrics)
        self._cancels = TopicReader(role.settings, [REALTIME_CANCEL], metrics=role.metrics)

    async def on_start(self) -> None:
        """Connects, and begins to say that it is alive. Raises KafkaBaseError."""
        self._clients = _clients(self._table, os.environ)
        process = new_process_id()
        self.usage = UsageReporter(process, self._send_usage, self._clock)
        self.worker = Worker(
            f"{self._role.name}-{self._role.settings.instance}",
            process,
            self._table,
            {
                name: Caller(self._table.upstreams[name], client, self._clock)
                for name, client in self._clients.items()
            },
            self._send_replies,
            self._clock,
            self._role.metrics,
            self._changed.set,
            self.usage.add,
            self._role.crash,
        )
        self.load = LoadReporter(self.worker, self._send_load, self._changed)
        await self._replier.start()
        await self._cancels.start("end")
        self._beside.start(self._follow_cancels())
        self._beside.start(self.load.run())
        self._beside.start(self.usage.run())

    async def on_stop(self) -> None:
        """Closes what on_start opened."""
        await self._beside.stop(0.0)
        for client in self._clients.values():
            await client.close()
        await self._cancels.stop()
        await self._replier.stop()

    async def consume(self, records: AsyncIterator[Consumed]) -> None:
        """Acks each request, then takes it: whatever happens, it is not begun twice."""
        async for consumed in records:
            if self.worker.stopping:
                # Left for the worker that comes after.
                continue
            consumed.ack()
            self.worker.take(cast("RealtimeRequest", consumed.record))

    async def stopping(self) -> None:
        """Takes nothing more, and finishes what runs within the role's budget."""
        await self.load.publish(stopping=True)
        await self.worker.stop(self._role.stop_budget_s * _CALLS_SHARE)
        await self.usage.stop(_USAGE_BUDGET_S)

    async def _send_replies(self, partition: int, record: RealtimeReplies) -> None:
        await self._replier.send_to(REALTIME_REPLY, partition, record)

    async def _send_usage(self, record: UsageRecorded) -> None:
        await self._role.producer.send(USAGE_RECORDED, record.tenant, record)

    async def _send_load(self, load: RealtimeLoad) -> None:
        await self._role.producer.send(CAPACITY, load.worker, load)

    async def _follow_cancels(self) -> None:
        while True:
            try:
                for read in await self._cancels.poll(1.0):
                    if isinstance(read.record, RealtimeCancel):
                        self.worker.cancel(read.record)
            except KafkaBaseError as error:
                # Until it is back, calls whose clients have gone run to their ends.
                log.warning(
                    "Could not read which clients went away.",
                    action="cancels_not_read",
                    error=type(error).__name__,
                )
                await asyncio.sleep(_READER_PAUSE_S)


def _clients(table: UpstreamTable, environment: Mapping[str, str]) -> dict[str, InferenceClient]:
    pools = [pool.upstream for pool in table.pools.values()]
    return {
        name: HTTPInferenceClient(
            upstream, pools.count(name) * upstream.realtime_max_in_flight, environment
        )
        for name, upstream in table.upstreams.items()
    }


def main(settings: Settings) -> int:
    """Runs a realtime-worker until it is told to stop; the exit code."""
    try:
        table = load_upstreams(settings)
        for upstream in table.upstreams.values():
            request_headers(upstream, os.environ)
    except UpstreamTableError as error:
        log.critical(str(error), action="settings_wrong")
        return EXIT_USAGE
    session_s = min(settings.session_timeout_s, _SESSION_TIMEOUT_S)
    role = Role(
        "realtime-worker",
        settings.model_copy(update={"session_timeout_s": session_s}),
        commit_interval_s=_COMMIT_S,
        commit_every=_COMMIT_EVERY,
        max_poll_records=_POLL_RECORDS,
    )
    realtime_worker = RealtimeWorker(role, table)
    role.add_service(realtime_worker)
    role.consume(REALTIME_REQUEST, realtime_worker.consume, buffer=_BUFFER)
    role.on_stopping(realtime_worker.stopping)
    return role.run()
