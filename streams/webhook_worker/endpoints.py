"""Follows the topic `webhook`: whom each tenant wants told of what."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

import structlog

from schemas.records import WebhookEndpoint
from streams.domain.webhooks.endpoints import endpoint_id_of, record_key, supersedes
from streams.kafka.errors import KafkaBaseError
from streams.kafka.reader import ReadRecord

log = structlog.get_logger(__name__)

_RETRY_S = 1.0


class Reader(Protocol):
    """The part of TopicReader that is needed here."""

    async def start(self) -> None: ...

    async def poll(self, timeout_s: float = 0.2) -> list[ReadRecord]: ...

    async def ends(self) -> dict[tuple[str, int], int]: ...

    def positions(self) -> dict[tuple[str, int], int]: ...

    async def stop(self) -> None: ...


class Endpoints:
    """Keeps the endpoints as the topic says. on_deleted: told the id of each that is gone."""

    def __init__(self, reader: Reader, on_deleted: Callable[[str], None]) -> None:
        self._reader = reader
        self._on_deleted = on_deleted
        self._known: dict[str, WebhookEndpoint] = {}
        self._positions: dict[tuple[str, int], int] = {}
        self._moved = asyncio.Event()

    async def start(self) -> None:
        """Connects. Raises KafkaBaseError."""
        await self._reader.start()

    async def stop(self) -> None:
        """Disconnects."""
        await self._reader.stop()

    def get(self, endpoint_id: str) -> WebhookEndpoint | None:
        """The endpoint, if there is one."""
        found = self._known.get(endpoint_id)
        return None if found is None or found.deleted_at_ms is not None else found

    def of(self, tenant: str) -> list[WebhookEndpoint]:
        """The tenant's endpoints."""
        return [
            endpoint
            for endpoint in self._known.values()
            if endpoint.tenant == tenant and endpoint.deleted_at_ms is None
        ]

    async def work(self) -> None:
        """Reads for ever."""
        while True:
            try:
                found = await self._reader.poll(1.0)
            except KafkaBaseError as error:
                _warn(error)
                await asyncio.sleep(_RETRY_S)
                continue
            for read in found:
                self._take(read)
            self._positions = self._reader.positions()
            self._moved.set()
            self._moved = asyncio.Event()

    async def sync(self) -> None:
        """Waits until everything that is in the topic now is known, however long that takes.

        Whoever was told that an endpoint exists is so never overlooked.
        """
        while True:
            try:
                ends = await self._reader.ends()
                break
            except KafkaBaseError as error:
                _warn(error)
                await asyncio.sleep(_RETRY_S)
        while any(self._positions.get(place, 0) < end for place, end in ends.items()):
            await self._moved.wait()

    def _take(self, read: ReadRecord) -> None:
        endpoint_id = endpoint_id_of(read.key)
        before = self._known.get(endpoint_id)
        if isinstance(read.record, WebhookEndpoint):
            if not supersedes(read.record, before):
                return
            self._known[endpoint_id] = read.record
            if read.record.deleted_at_ms is not None and before is not None:
                self._on_deleted(endpoint_id)
        elif before is not None and record_key(before) == read.key:
            # What counts gets no tombstone but once it is long deleted. Version 1 deleted so.
            del self._known[endpoint_id]
            if read.key == endpoint_id:
                self._on_deleted(endpoint_id)


def _warn(error: KafkaBaseError) -> None:
    log.warning("Webhooks can not be read.", action="webhooks_not_read", error=str(error))
