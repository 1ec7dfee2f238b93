"""Wires the webhook-worker: webhook.event in, tables, and events out to tenants' endpoints."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import cast

from mode import Service

from schemas.topics import WEBHOOK, WEBHOOK_EVENT
from streams.adapters.webhook_sender import HTTPWebhookSender
from streams.background import Tasks
from streams.domain.clock import SystemClock
from streams.kafka.errors import KafkaBaseError
from streams.kafka.reader import TopicReader
from streams.kafka.role import Consumed, Role
from streams.settings import Settings
from streams.webhook_worker.books import Books, Rows
from streams.webhook_worker.endpoints import Endpoints
from streams.webhook_worker.worker import Parts, Worker


class WebhookWorker(Service):
    """The role's parts, and what happens to its partitions."""

    def __init__(self, role: Role) -> None:
        super().__init__()
        self._role = role
        rows = cast("Rows", role.table("webhooks", WEBHOOK_EVENT))
        self._books = Books(rows, role.producer, role.fence)
        reader = TopicReader(role.settings, [WEBHOOK], metrics=role.metrics)
        self._endpoints = Endpoints(reader, self._deleted)
        self._following = Tasks(role.crash)
        self._working = Tasks(role.crash)
        self._worker: Worker | None = None
        self._sender: HTTPWebhookSender | None = None
        role.consume(WEBHOOK_EVENT, self._consume)
        role.add_service(self)
        role.on_assigned(self._assigned)
        role.on_revoked(self._revoked)
        role.on_stopping(self._stopping)

    async def on_start(self) -> None:
        """Begins to follow the endpoints. Raises KafkaBaseError."""
        settings = self._role.settings
        self._sender = HTTPWebhookSender(allow_private=settings.webhook_allow_private)
        self._worker = Worker(
            Parts(
                books=self._books,
                endpoints=self._endpoints,
                sender=self._sender,
                guard=self._role.fence,
                clock=SystemClock(),
                metrics=self._role.metrics,
                retry_after_s=settings.webhook_retry_after_s,
                broken=self._role.crash,
            )
        )
        await self._endpoints.start()
        self._following.start(self._endpoints.work())

    async def on_stop(self) -> None:
        """Ends everything."""
        await self._stopping()
        await self._following.stop(0.0)
        await self._endpoints.stop()
        if self._sender is not None:
            await self._sender.close()

    async def _consume(self, records: AsyncIterator[Consumed]) -> None:
        await self._running_worker().consume(records)

    async def _assigned(self, assignment: dict[str, set[int]]) -> None:
        await self._stopping()
        held = assignment.get(WEBHOOK_EVENT.name, set())
        self._books.load(held, await self._role.producer.partitions(WEBHOOK_EVENT))
        if held:
            self._working.start(self._running_worker().begin())
            self._working.start(self._books.publish())

    async def _revoked(self, _revoked: dict[str, set[int]]) -> None:
        await self._stopping()
        self._books.clear()

    async def _stopping(self) -> None:
        # An attempt that is cut off is made again, by whoever has its partition then.
        await self._working.stop(0.0)
        if self._worker is not None:
            await self._worker.stop()

    def _deleted(self, endpoint_id: str) -> None:
        self._running_worker().forget(endpoint_id)

    def _running_worker(self) -> Worker:
        if self._worker is None:
            raise KafkaBaseError("The webhook-worker is used before it has started.")
        return self._worker


def main(settings: Settings) -> int:
    """Runs a webhook-worker until it is told to stop; the exit code."""
    role = Role("webhook-worker", settings, tables=True)
    WebhookWorker(role)
    return role.run()
