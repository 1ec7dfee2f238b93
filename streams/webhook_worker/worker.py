"""Delivers: folds webhook.event, and drives every delivery that is pending.

    event ─► rows (table; shown to gateways soon) ─► ack
    pending row ─► wait until it is due ─► a place in its lanes ─► POST ─► row

A crash after the POST and before its row is written makes the attempt again, with the same
`webhook-id`. Each delivery waits in a task of its own, so a slow endpoint delays only itself.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import assert_never

import structlog

from schemas.metrics import WEBHOOK_ATTEMPTS, WEBHOOKS_DISABLED, WEBHOOKS_PENDING, Metrics
from schemas.records import (
    BatchEnded,
    DeliveryState,
    WebhookCommand,
    WebhookCommandKind,
    WebhookDelivery,
    WebhookEndpoint,
)
from streams.background import Broken
from streams.domain.clock import Clock
from streams.domain.webhooks.deliveries import (
    after,
    attempted,
    begun,
    enabled,
    given_up,
    replayed,
    surplus,
)
from streams.domain.webhooks.endpoints import secrets_at
from streams.domain.webhooks.events import TYPES, body_of, event_id, headers_of
from streams.kafka.failpoint import reach
from streams.kafka.role import Consumed
from streams.ports.webhook_sender import WebhookSender
from streams.webhook_worker.books import Books, Guard
from streams.webhook_worker.endpoints import Endpoints

log = structlog.get_logger(__name__)

#: Attempts at once: to one endpoint, and to all endpoints of one tenant.
_PER_ENDPOINT, _PER_TENANT = 2, 8
#: The clock may jump, so it is looked at this often.
_LOOK_S = 30.0
#: A pause is this much shorter or longer, so that what failed together does not come together.
_JITTER = 0.1

Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Parts:
    """What the worker works with. retry_after_s: pauses after failed attempts, in order."""

    books: Books
    endpoints: Endpoints
    sender: WebhookSender
    guard: Guard
    clock: Clock
    metrics: Metrics
    retry_after_s: Sequence[float]
    broken: Broken
    random: Callable[[], float] = field(default=random.random)


class Worker:
    """All deliveries of the partitions held."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._books = parts.books
        self._running: dict[Key, asyncio.Task[None]] = {}
        self._endpoint_lanes: dict[str, asyncio.Semaphore] = {}
        self._tenant_lanes: dict[str, asyncio.Semaphore] = {}
        self.stop_now()

    def stop_now(self) -> list[asyncio.Task[None]]:
        """Cuts every attempt off; whoever has its row makes it again. The tasks, to wait for."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        self._running.clear()
        self._endpoint_lanes = defaultdict(lambda: asyncio.Semaphore(_PER_ENDPOINT))
        self._tenant_lanes = defaultdict(lambda: asyncio.Semaphore(_PER_TENANT))
        return tasks

    async def stop(self) -> None:
        """The same, and waits for them."""
        await asyncio.gather(*self.stop_now(), return_exceptions=True)

    async def begin(self) -> None:
        """Goes on with what the books have, once it is known which endpoints there still are."""
        await self._parts.endpoints.sync()
        for endpoint_id in self._books.endpoints():
            if self._parts.endpoints.get(endpoint_id) is None:
                self.forget(endpoint_id)
            for delivery in self._books.pending(endpoint_id):
                if (endpoint_id, delivery.event_id) not in self._running:
                    self._start(delivery)

    def forget(self, endpoint_id: str) -> None:
        """The endpoint was deleted: so is everything about it."""
        for key in [key for key in self._running if key[0] == endpoint_id]:
            self._running.pop(key).cancel()
        self._books.forget(endpoint_id)
        self._count()

    # -- events ----------------------------------------------------------------------------

    async def consume(self, records: AsyncIterator[Consumed]) -> None:
        """Takes events as they come."""
        async for consumed in records:
            await self._parts.endpoints.sync()
            await self._parts.guard.wait()
            if not consumed.live:
                continue
            # From here to the ack nothing is awaited, so a revoke can't come between.
            match consumed.record:
                case BatchEnded() as ended:
                    self._tell(ended, consumed.offset)
                case WebhookCommand() as command:
                    self._obey(command, consumed.offset)
            consumed.ack()

    def _tell(self, ended: BatchEnded, offset: int) -> None:
        event_type = TYPES.get(ended.status)
        if event_type is None:
            return
        for endpoint in self._parts.endpoints.of(ended.tenant):
            if event_type in endpoint.event_types:
                event = event_id(ended.batch_id, event_type)
                self._begin(endpoint, event, event_type, ended.batch_id, ended.at_ms, offset)

    def _obey(self, command: WebhookCommand, offset: int) -> None:
        endpoint = self._parts.endpoints.get(command.endpoint_id)
        if endpoint is None or endpoint.tenant != command.tenant:
            return
        match command.kind:
            case WebhookCommandKind.TEST:
                what = (command.event_id, command.event_type, "batch_test")
                self._begin(endpoint, *what, command.at_ms, offset)
            case WebhookCommandKind.REPLAY:
                self._replay(command, offset)
            case WebhookCommandKind.ENABLE:
                state = self._books.state(command.tenant, command.endpoint_id)
                if (now := enabled(state, offset)) is not None:
                    self._books.put(now)
            case WebhookCommandKind.UNKNOWN:
                pass
            case _:
                assert_never(command.kind)

    def _begin(
        self,
        endpoint: WebhookEndpoint,
        event: str,
        event_type: str,
        object_id: str,
        event_at_ms: int,
        offset: int,
    ) -> None:
        now_ms = self._parts.clock.now_ms()
        fresh = WebhookDelivery(
            endpoint_id=endpoint.endpoint_id,
            event_id=event,
            tenant=endpoint.tenant,
            event_type=event_type,
            object_id=object_id,
            event_at_ms=event_at_ms,
            watermark=offset,
            state=DeliveryState.PENDING,
            attempts=0,
            next_at_ms=now_ms,
            changed_at_ms=now_ms,
        )
        endpoint_id = endpoint.endpoint_id
        before, pending = self._books.get(endpoint_id, event), self._books.pending(endpoint_id)
        state = self._books.state(endpoint.tenant, endpoint_id)
        self._write(begun(fresh, before, state, len(pending)))

    def _replay(self, command: WebhookCommand, offset: int) -> None:
        before = self._books.get(command.endpoint_id, command.event_id)
        if before is not None:
            state = self._books.state(command.tenant, command.endpoint_id)
            self._write(replayed(before, state, offset, self._parts.clock.now_ms()))

    def _write(self, delivery: WebhookDelivery | None) -> None:
        if delivery is None:
            return
        self._books.put(delivery)
        if delivery.state is DeliveryState.PENDING:
            self._start(delivery)
        else:
            self._trim(delivery.endpoint_id)

    # -- attempts --------------------------------------------------------------------------

    def _start(self, delivery: WebhookDelivery) -> None:
        key = (delivery.endpoint_id, delivery.event_id)
        if key in self._running:
            self._running.pop(key).cancel()
        task = asyncio.create_task(self._drive(key))
        self._running[key] = task
        task.add_done_callback(lambda ended: self._ended(key, ended))
        self._count()

    def _ended(self, key: Key, task: asyncio.Task[None]) -> None:
        if self._running.get(key) is task:
            del self._running[key]
        if not task.cancelled() and (error := task.exception()) is not None:
            self._parts.broken(error)
        self._count()

    async def _drive(self, key: Key) -> None:
        """Tries until the delivery is no longer pending."""
        while True:
            delivery = self._books.get(*key)
            if delivery is None or delivery.state is not DeliveryState.PENDING:
                return
            wait_s = (delivery.next_at_ms - self._parts.clock.now_ms()) / 1000
            if wait_s > 0:
                await asyncio.sleep(min(wait_s, _LOOK_S))
                continue
            async with self._endpoint_lanes[key[0]], self._tenant_lanes[delivery.tenant]:
                if self._books.get(*key) is delivery:
                    await self._attempt(delivery)

    async def _attempt(self, delivery: WebhookDelivery) -> None:
        parts = self._parts
        endpoint = parts.endpoints.get(delivery.endpoint_id)
        if endpoint is None:
            self.forget(delivery.endpoint_id)
            return
        now_ms = parts.clock.now_ms()
        if not endpoint.enabled:
            self._write(given_up(delivery, now_ms))
            return
        body = body_of(delivery)
        headers = headers_of(delivery.event_id, body, secrets_at(endpoint, now_ms), now_ms)
        attempt = await parts.sender.post(endpoint.url, body, headers)
        reach("webhook.sent")
        await parts.guard.wait()
        parts.metrics.counter(WEBHOOK_ATTEMPTS).labels(attempt.outcome).inc()
        jitter = 1 + _JITTER * (2 * parts.random() - 1)
        now_ms = parts.clock.now_ms()
        self._settle(attempted(delivery, attempt, parts.retry_after_s, now_ms, jitter))

    def _settle(self, delivery: WebhookDelivery) -> None:
        self._books.put(delivery)
        log.info(
            "Tried to deliver an event.",
            action="webhook_attempted",
            endpoint_id=delivery.endpoint_id,
            event_id=delivery.event_id,
            attempts=delivery.attempts,
            status_code=delivery.status_code,
            error=delivery.error,
        )
        before = self._books.state(delivery.tenant, delivery.endpoint_id)
        state = after(before, delivery)
        if state is not before:
            self._books.put(state)
        if state.disabled_at_ms is not None and before.disabled_at_ms is None:
            self._disabled(delivery.endpoint_id)
        self._trim(delivery.endpoint_id)

    def _disabled(self, endpoint_id: str) -> None:
        self._parts.metrics.counter(WEBHOOKS_DISABLED).inc()
        log.warning(
            "An endpoint is disabled: nothing got through.",
            action="webhook_disabled",
            endpoint_id=endpoint_id,
        )
        now_ms = self._parts.clock.now_ms()
        for delivery in self._books.pending(endpoint_id):
            # Their tasks find that they are no longer pending.
            self._books.put(given_up(delivery, now_ms))

    def _trim(self, endpoint_id: str) -> None:
        for delivery in surplus(self._books.of(endpoint_id)):
            self._books.delete(delivery)

    def _count(self) -> None:
        self._parts.metrics.gauge(WEBHOOKS_PENDING).set(len(self._running))
