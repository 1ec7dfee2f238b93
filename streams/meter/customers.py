"""Follows `account`: whom each tenant is billed to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Literal, Protocol

import structlog

from schemas.records import BillingCustomer
from schemas.topics import ACCOUNT
from streams.domain.billing.meter.customers import tenant_of
from streams.kafka.errors import KafkaBaseError
from streams.kafka.reader import ReadRecord

log = structlog.get_logger(__name__)

#: Customers are known before the first send, unless reading them takes longer than this.
_CATCH_UP_S = 10.0
_POLL_S = 1.0
_PAUSE_S = 1.0


class Reader(Protocol):
    """The part of TopicReader that is needed here."""

    async def start(self, positions: Literal["beginning"]) -> None: ...

    async def poll(self, timeout_s: float = 0.2) -> list[ReadRecord]: ...

    async def ends(self) -> dict[tuple[str, int], int]: ...

    def positions(self) -> dict[tuple[str, int], int]: ...

    async def stop(self) -> None: ...


#: Tells which tenants have another customer now.
OnChange = Callable[[frozenset[str]], Awaitable[None]]


class Customers:
    """The latest customer of each tenant, as far as the topic was read."""

    def __init__(self, reader: Reader, on_change: OnChange) -> None:
        self._reader = reader
        self._on_change = on_change
        self._customers: dict[str, str] = {}

    def of(self, tenant: str) -> str | None:
        """The tenant's customer; None if none is set."""
        return self._customers.get(tenant)

    async def start(self) -> None:
        """Reads what there is. Raises KafkaBaseError."""
        await self._reader.start("beginning")
        end = (await self._reader.ends()).get((ACCOUNT.name, 0), 0)
        give_up = time.monotonic() + _CATCH_UP_S
        while self._reader.positions().get((ACCOUNT.name, 0), 0) < end:
            if time.monotonic() > give_up:
                log.warning("Customers are still being read.", action="catch_up_late")
                return
            self._apply(await self._reader.poll())

    async def stop(self) -> None:
        """Disconnects."""
        await self._reader.stop()

    async def work(self) -> None:
        """Reads on, for ever. Without news everybody keeps the customer they had."""
        while True:
            try:
                changed = self._apply(await self._reader.poll(_POLL_S))
            except KafkaBaseError as error:
                log.warning(
                    "Could not read customers.",
                    action="customers_not_read",
                    error=type(error).__name__,
                )
                await asyncio.sleep(_PAUSE_S)
                continue
            if changed:
                await self._on_change(changed)

    def _apply(self, records: list[ReadRecord]) -> frozenset[str]:
        changed = set()
        for read in records:
            tenant = tenant_of(read.key)
            if tenant is None:
                continue
            if isinstance(read.record, BillingCustomer):
                self._customers[tenant] = read.record.stripe_customer_id
            elif read.record is None:
                self._customers.pop(tenant, None)
            changed.add(tenant)
        return frozenset(changed)
