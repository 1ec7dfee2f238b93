"""Writes the changelogs of a role's tables. Everything else goes through RecordProducer.

Faust's own way logs a write that failed and goes on, and its flush gives up after 100 ms, so a
commit could precede the rows it stands for.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any

from aiokafka import AIOKafkaProducer
from faust.transport.drivers import aiokafka as driver
from mode import Service

from schemas.topics import MAX_RECORD_BYTES
from streams.kafka.app import app_of
from streams.kafka.connection import REQUEST_TIMEOUT_MS, connection
from streams.kafka.errors import SendFailed

#: Writes may wait this long for company.
_LINGER_MS = 5

Headers = Sequence[tuple[str, bytes]]


class ChangelogProducer(driver.Producer):
    """Sends writes in order, and knows when the broker has them all."""

    mundane_level = "debug"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._writes: deque[tuple[str, int, bytes, bytes | None, Headers]] = deque()
        self._in_flight: set[asyncio.Future[Any]] = set()
        self._wake = asyncio.Event()
        self._drained = asyncio.Event()
        self._drained.set()
        self._failed: SendFailed | None = None

    def _new_producer(self, transactional_id: str | None = None) -> AIOKafkaProducer:
        settings = app_of(self.transport).options.settings
        return AIOKafkaProducer(
            **connection(settings),
            acks="all",
            enable_idempotence=settings.kafka_idempotence,
            linger_ms=_LINGER_MS,
            max_request_size=MAX_RECORD_BYTES,
            request_timeout_ms=REQUEST_TIMEOUT_MS,
        )

    async def create_topic(self, *args: Any, **kwargs: Any) -> None:
        """The role has made its changelogs (lifecycle.py), with settings that Faust can't."""

    def write(
        self, topic: str, partition: int, key: bytes, value: bytes | None, headers: Headers = ()
    ) -> None:
        """Queues a write; `flush` says whether the broker took it. Writes stay in order."""
        self._writes.append((topic, partition, key, value, headers))
        self._drained.clear()
        self._wake.set()

    @Service.task
    async def _send_writes(self) -> None:
        while not self.should_stop:
            await self._wake.wait()
            self._wake.clear()
            while self._writes:
                topic, partition, key, value, headers = self._writes[0]
                sent = await self._ensure_producer().send(
                    topic, value=value, key=key, partition=partition, headers=list(headers)
                )
                self._writes.popleft()
                self._in_flight.add(sent)
                sent.add_done_callback(self._sent)

    def _sent(self, sent: asyncio.Future[Any]) -> None:
        self._in_flight.discard(sent)
        error = None if sent.cancelled() else sent.exception()
        if error is not None and self._failed is None:
            self._failed = SendFailed(f"A changelog write failed: {type(error).__name__}")
            app_of(self.transport).options.on_crash(self._failed)
        if self._failed is not None or not (self._writes or self._in_flight):
            self._drained.set()

    async def flush(self) -> None:
        """Returns when the broker has every write. Raises SendFailed if it refused one."""
        await self._drained.wait()
        if self._failed is not None:
            raise self._failed
