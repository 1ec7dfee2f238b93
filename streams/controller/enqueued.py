"""Follows `account` and `batch.status`: whose batches have room, wherever in the fleet they are."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import Protocol

import structlog

from schemas.records import ApiKeyRecord, BatchSnapshot, TenantRecord
from streams.domain.billing.budgets.holds import BudgetHolds
from streams.domain.clock import Clock
from streams.domain.enqueued.tenants import Tenants
from streams.kafka.errors import KafkaBaseError
from streams.kafka.reader import ReadRecord

log = structlog.get_logger(__name__)

_RETRY_S = 1.0
#: Windows end without a record, so that is looked for at least so often.
_POLL_S = 1.0
#: Room is divided at most this often: each time goes through the batches of a tenant.
_PAUSE_S = 0.05


class Reader(Protocol):
    """The part of TopicReader that is needed here."""

    async def start(self) -> None: ...

    async def poll(self, timeout_s: float = 0.2) -> list[ReadRecord]: ...

    async def ends(self) -> dict[tuple[str, int], int]: ...

    def positions(self) -> dict[tuple[str, int], int]: ...

    async def stop(self) -> None: ...


class EnqueuedFollower:
    """Keeps `tenants` as the topics say.

    listener: told the batches that may go on now and couldn't, or could; None: any may.
    """

    def __init__(
        self, account: Reader, status: Reader, clock: Clock, budgets: BudgetHolds | None = None
    ) -> None:
        self._account = account
        self._status = status
        self._clock = clock
        self.tenants = Tenants(budgets)
        self.listener: Callable[[Collection[str] | None], None] | None = None
        self._warned = False
        self._any_moved = False

    async def start(self) -> None:
        """Connects. Raises KafkaBaseError."""
        await self._account.start()
        await self._status.start()

    async def stop(self) -> None:
        """Disconnects."""
        await self._account.stop()
        await self._status.stop()

    async def follow_limits(self) -> None:
        """Reads for ever. Until all limits are known, nothing is released."""

        def read_all() -> None:
            self.tenants.limits_known = True

        await self._follow(self._account, read_all)

    async def follow_batches(self) -> None:
        """Reads for ever. Until all batches are known, tenants with limits wait."""

        def read_all() -> None:
            self.tenants.batches_known = True

        await self._follow(self._status, read_all)

    async def _follow(self, reader: Reader, read_all: Callable[[], None]) -> None:
        ends: dict[tuple[str, int], int] | None = None
        behind = True
        while True:
            try:
                if ends is None:
                    ends = await reader.ends()
                for read in await reader.poll(_POLL_S):
                    self._take(read)
            except KafkaBaseError as error:
                log.warning(
                    "What tenants have enqueued can not be read.",
                    action="enqueued_not_read",
                    error=str(error),
                )
                await asyncio.sleep(_RETRY_S)
                continue
            came_up = behind and all(reader.positions().get(at, 0) >= e for at, e in ends.items())
            if came_up:
                behind = False
                self._any_moved = True
                read_all()
            self._warn()
            self._tell(self.tenants.settle(self._clock.now_ms()))
            if not behind:
                await asyncio.sleep(_PAUSE_S)

    def _take(self, read: ReadRecord) -> None:
        # A limit is also for batches of which no snapshot has told yet.
        match read.record:
            case ApiKeyRecord() as key:
                self._any_moved = True
                self.tenants.hear_key(key)
            case TenantRecord() as limits:
                self._any_moved = True
                self.tenants.hear_limits(limits)
            case BatchSnapshot() as snapshot:
                self.tenants.hear_batch(snapshot)

    def _warn(self) -> None:
        if self.tenants.budgets.unpriced and not self._warned:
            self._warned = True
            log.warning(
                "There are budgets, but no price book: set BACKHAUL_PRICES_FILE.",
                action="budgets_not_enforced",
            )

    def _tell(self, moved: Collection[str]) -> None:
        any_moved, self._any_moved = self._any_moved, False
        if self.listener is not None and (moved or any_moved):
            self.listener(None if any_moved else moved)
